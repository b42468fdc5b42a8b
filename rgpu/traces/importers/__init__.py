"""Readers of foreign trace formats, one file a format."""
