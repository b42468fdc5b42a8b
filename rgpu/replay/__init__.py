"""Replay: routing events through the decision loop, bounds, and metrics."""
