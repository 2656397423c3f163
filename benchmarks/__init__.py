"""Measurements of the package's speed; each runs as `python -m benchmarks.NAME`."""
