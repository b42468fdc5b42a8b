"""Tiny traces with results worked out by code that shares nothing with the decision loop, for any engine to be tested on."""
