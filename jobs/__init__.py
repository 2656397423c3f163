"""Entry points and recipes for `ray job submit`."""
