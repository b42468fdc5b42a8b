"""Readers of model checkpoints: experts are found by name and read one at a time."""
