"""The page to choose a model by. Light: neither torch, pandas nor Ray."""
