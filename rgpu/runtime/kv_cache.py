"""What a model's cache keeps of a sequence, found by passing tokens through its skeleton: no weights, no computation.

transformers decides what a cache holds (the latent of MLA rather than its keys, windows, states of linear attention), so the
skeleton is asked instead of the config.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from rgpu.errors import InputError
from rgpu.planning.model_facts import KvLayer
from rgpu.traces.moe_layers import moe_layers

_SHORT, _LONG, _CHECK = 8, 16, 640
_MARKER = "_sliding_window_tensor"  # a number that a layer keeps as a tensor for tracing


def kv_layers(skeleton: PreTrainedModel) -> tuple[KvLayer, ...]:
    """The cache of each layer of a model on the meta device. Its experts are cut out: `skeleton` cannot run afterwards.

    Raises `InputError` for a model that cannot run so, and for caches that do not grow evenly.
    """
    for layer in moe_layers(skeleton):
        layer.experts.forward = lambda x_TD, *_, **__: torch.empty_like(x_TD)
    short, long = _cache(skeleton, _SHORT), _cache(skeleton, _LONG)
    found = []
    for at, (before, after) in enumerate(zip(_sizes(short), _sizes(long), strict=True)):
        step = (after - before) // (_LONG - _SHORT)
        window = int(getattr(long.layers[at], "sliding_window", 0) or 0)
        if 0 < window <= _LONG:  # it was full before the longer pass: all it holds grew in the first tokens
            step = before // min(_SHORT, window - 1) if window > 1 else 0
            state = 0
        else:
            state = before - step * _SHORT
        found.append(KvLayer(step, window, state, _flop(skeleton, long.layers[at])))
    limit = getattr(skeleton.config.get_text_config(), "max_position_embeddings", None) or _CHECK
    length = min(_CHECK, limit)
    measured, expected = sum(_sizes(_cache(skeleton, length))), sum(layer.bytes(length) for layer in found)
    if measured != expected:
        raise InputError(
            f"cannot plan {skeleton.config.model_type}: got a cache of {measured} bytes at {length} tokens where "
            f"{expected} were expected; expected one that grows evenly; choose another model"
        )
    return tuple(found)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors that a transformers cache holds, as far as they are used."""
    return sum(_sizes(cache))


def _cache(skeleton: PreTrainedModel, tokens: int) -> DynamicCache:
    cache = DynamicCache(config=skeleton.config)
    taken = inspect.signature(type(skeleton).forward).parameters
    given = {"cache" if "cache" in taken else "past_key_values": cache}
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    try:
        with torch.inference_mode():
            skeleton(input_ids=ids, use_cache=True, **given)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError) as error:
        line = " ".join(str(error).split())[:160]
        raise InputError(
            f"cannot plan {skeleton.config.model_type}: its cache cannot be found without weights: got {line}; "
            "expected a complete config of a model with a DynamicCache; choose another model"
        ) from None
    return cache


def _sizes(cache: Any) -> list[int]:
    return [sum(t.numel() * t.element_size() for t in _tensors(vars(layer))) for layer in cache.layers]


def _tensors(values: dict[Any, Any]) -> Iterator[torch.Tensor]:
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and name != _MARKER:
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)


def _flop(skeleton: PreTrainedModel, layer: Any) -> int:
    """Operations of scores and values per token and token of context."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None or not keys.numel():
        return 0
    return (
        2 * int(skeleton.config.get_text_config().num_attention_heads) * sum(head_widths(skeleton.config, keys, values))
    )


def head_widths(config: Any, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> tuple[int, int]:
    """Numbers of a key and of a value of one head, after MLA's latent is expanded; by the cached ones where there are."""
    text = config.get_text_config()
    width = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    if getattr(text, "kv_lora_rank", None):
        parts = [int(getattr(text, f"qk_{part}_head_dim", 0) or 0) for part in ("nope", "rope")]
        return sum(parts) or width, int(getattr(text, "v_head_dim", None) or width)
    if keys is not None and values is not None:
        return keys.shape[-1], values.shape[-1]
    return width, int(getattr(text, "v_head_dim", None) or width)
