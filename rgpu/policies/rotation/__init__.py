"""Parts of the rotary family: hooks and calibration that `rotary_paper` and `rotary_hybrid` share, one concept a file."""
