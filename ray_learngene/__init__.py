"""Train one learngene, spawn a vision model for every budget.

The three actions, each also a command of the same name: `ray_learngene.distill.distill`, `ray_learngene.sweep.sweep`
and `ray_learngene.pull.pull`. Importing the package imports nothing heavy.
"""

__version__ = "0.1.0"
