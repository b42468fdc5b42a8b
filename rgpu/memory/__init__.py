"""Device buffers that experts are copied into, and what the process holds in memory."""
