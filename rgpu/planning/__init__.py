"""Prefetch planners: a forecast and what is resident, turned into ordered loads."""
