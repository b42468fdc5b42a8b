"""Residency policies: one compiled decision loop and one file a policy."""
