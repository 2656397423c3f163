"""Artefacts in a folder or a bucket: manifests, the index, checkpoints and downloads."""
