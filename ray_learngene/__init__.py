"""Train one learngene, spawn a vision model for every budget. Importing the package imports nothing heavy."""

__version__ = "0.1.0"
