"""Live inference: a transformers model whose experts run from a slot pool."""
