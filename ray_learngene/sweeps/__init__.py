"""From a learngene to descendants of many sizes."""
