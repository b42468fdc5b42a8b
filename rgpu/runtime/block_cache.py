"""A static cache that begins short and grows by blocks, so that its bytes are taken when the context needs them.

Between two growths keys and values stay at their addresses, which is what a captured step needs; after one the step is captured
again. Layers with a sliding window, or with states, have their full size from the start.
"""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

BLOCK = 256  # tokens: a capture takes about a second


def block_cache(model: PreTrainedModel, tokens: int, full: int) -> StaticCache:
    """For sequences of up to `full` tokens, with room for `tokens` now; give it to `generate` as `cache_name` says."""
    cache = StaticCache(config=model.config, max_cache_len=full)
    for layer in _growing(cache):
        layer.max_cache_len = min(tokens, full)
    return cache


def cache_name(model: PreTrainedModel) -> str:
    """What `generate` calls the argument: another name from transformers 5.24 on."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def grow(cache: Any, tokens: int) -> None:
    """Room for `tokens` tokens, layer by layer, so that only one is there twice; nothing where there is that much. After an
    allocation that failed it can be called again."""
    for layer in _growing(cache):
        if layer.max_cache_len >= tokens:
            continue
        if layer.is_initialized:  # where there is no memory for both, neither changes
            layer.keys, layer.values = _longer(layer.keys, tokens), _longer(layer.values, tokens)
            if layer.keys.is_cuda:  # the old ones are too short for the next layer: torch would keep them beside it
                torch.cuda.empty_cache()
        layer.max_cache_len = tokens


def room(cache: Any) -> int:
    """Tokens that the shortest growing layer has room for; 0 without one."""
    return min((layer.max_cache_len for layer in _growing(cache)), default=0)


def _growing(cache: Any) -> list[Any]:
    return [layer for layer in cache.layers if type(layer) is StaticLayer]


def _longer(old_BHTD: torch.Tensor, tokens: int) -> torch.Tensor:
    made = old_BHTD.new_zeros((*old_BHTD.shape[:2], tokens, old_BHTD.shape[3]))
    made[:, :, : old_BHTD.shape[2]] = old_BHTD
    return made
