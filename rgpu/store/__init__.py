"""The host tier of experts: one store file a model and dtype, memory-mapped or held in RAM."""
