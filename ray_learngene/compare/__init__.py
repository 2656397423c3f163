"""`learngene bench`: compare methods under one recipe."""
