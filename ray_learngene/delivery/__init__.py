"""From a learngene or a descendant to what runs on a device: expansion, export, timing."""
