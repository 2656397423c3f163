"""Sizes of models, what they cost, and the timm folder that a model is published as."""
