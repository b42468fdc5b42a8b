"""Traces of expert routing: storage, validation, statistics, splits, recording."""
