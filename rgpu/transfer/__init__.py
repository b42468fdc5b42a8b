"""Engines that move experts from the store into slots."""
