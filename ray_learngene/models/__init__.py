"""Model sizes, their costs, and the timm folder format of published models."""
