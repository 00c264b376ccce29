"""Offline scoring of files that may be larger than the memory, resumable, order kept."""
