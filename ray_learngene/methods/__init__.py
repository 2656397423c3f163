"""Methods: how an auxiliary model is built and how a learngene expands into descendants.

A new method is one new file in this package and one line in the registry below.
"""

from ray_learngene.methods.base import Learngene, Method
from ray_learngene.methods.registry import METHODS, create_method

__all__ = ["METHODS", "Learngene", "Method", "create_method"]
