"""From an ancestry model to a learngene."""
