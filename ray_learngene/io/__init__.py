"""Bytes at any URI: local files and object storage, retries, and errors in one line."""
