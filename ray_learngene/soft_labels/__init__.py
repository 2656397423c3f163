"""Soft labels: the ancestry model's answers to augmented views, asked once and kept in the store.

An augmented view is a function of seed, epoch, image and repeat alone (see `data`), so what the ancestry model says of
it can be read by every later distillation of any method, size and seed: with `--soft-labels`, a run reads the epochs
that are there and computes and keeps those that are not; `learngene softlabels` computes them beforehand.
"""
