"""Storage formats of expert weights: one file a format, one contiguous buffer an expert, bit-exact `unpack`."""
