"""Memory that a pass needs beside weights, cache and slots: an estimate from above, for plans.

Legend: R rows (tokens) of a pass, C tokens of context, B sequences, D hidden size, I expert width, K top-k.
"""

from rgpu.planning.model_facts import ModelFacts

_F32 = 4
_SPARE = 8  # one part in so many more, for memory that an allocator cannot use again at once


def workspace_bytes(facts: ModelFacts, context: int, batch: int, rows: int) -> int:
    """Bytes for a pass of `rows` tokens over `batch` sequences of up to `context` tokens; never less for more of any."""
    needed = _layer(facts, context, batch, rows) + _logits(facts, batch) + _growth(facts, context, batch, rows)
    return needed + needed // _SPARE


def _layer(facts: ModelFacts, context: int, batch: int, rows: int) -> int:
    """Activations of the widest layer as if all its maps' outputs lived at once, or of its experts, whichever is more.

    The norm and the residual add copies [R, D] in float32. Linear attention works in float32, on about four copies.
    """
    size = facts.itemsize
    stateful = any(layer.state for layer in facts.kv)
    width = facts.layer_width * (4 * _F32 if stateful else size)
    attention = rows * width + batch * context * facts.expanded_kv + _scores(facts, context, rows)
    # one expert may see every row (3 I of gate, up and their product; D in and out); every (token, rank) has an output
    experts = rows * size * (3 * facts.intermediate + 2 * facts.hidden)
    experts += rows * facts.top_k * (facts.hidden * size + 8 * _F32)
    return rows * facts.hidden * (3 * size + 2 * _F32) + max(attention, experts)


def _scores(facts: ModelFacts, context: int, rows: int) -> int:
    """A mask of every row and token; where they are materialised also scores of every head, and their softmax."""
    each = 1 + facts.itemsize
    if facts.scores:
        each += facts.heads * (2 * facts.itemsize + _F32)
    return rows * context * each


def _logits(facts: ModelFacts, batch: int) -> int:
    """Of one row a sequence, then a copy in float32 and what sampling makes of it."""
    return batch * facts.vocab * (facts.itemsize + 2 * _F32)


def _growth(facts: ModelFacts, context: int, batch: int, rows: int) -> int:
    """A layer's cache grows by being copied, so the largest exists twice; a window keeps a whole pass until the next one."""
    largest = max((layer.bytes(context) for layer in facts.kv), default=0)
    longest = min(context, -(-rows // batch))
    kept = sum(
        layer.per_token * (min(context, layer.window - 1 + longest) - layer.tokens(context))
        for layer in facts.kv
        if layer.window
    )
    return batch * (largest + kept)
