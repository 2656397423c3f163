"""`learngene bench`: methods under one recipe."""
