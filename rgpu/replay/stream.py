"""A trace as a stream of `RoutingEvent`s, pass by pass and layer by layer: what predictors and the controller consume."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rgpu.errors import TraceError
from rgpu.replay.events import pass_groups
from rgpu.types import RoutingEvent


def routing_events(trace: Any) -> Iterator[RoutingEvent]:
    """Events in the order they happened, floats as stored (float16 widened to float32).

    Raises TraceError where ids were not recorded: an event with holes is not what the model did. In the trace of a lossy run
    they are assignments that nothing was computed for, and -1 in its events.
    """
    if (trace.expert_ids == trace.missing).any() and "lossy" not in trace.header.provenance:
        raise TraceError("expert_ids: got tokens that were not recorded; expected a complete trace to step through")
    order, starts, numbers = pass_groups(trace)
    owner = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
    seen = np.zeros(trace.sequences, bool)
    for g, number in enumerate(numbers):
        rows = order[starts[g] : starts[g + 1]]
        fresh = not seen[owner[rows]].any()
        seen[owner[rows]] = True
        ids = trace.expert_ids[rows].astype(np.int16)
        ids[trace.expert_ids[rows] == trace.missing] = -1
        weights = None if trace.weights is None else trace.weights[rows].astype(np.float32)
        hidden = None if trace.hidden is None else trace.hidden[rows].astype(np.float32)
        logits = None if trace.router_logits is None else trace.router_logits[rows].astype(np.float32)
        phase = None if trace.phase is None else trace.phase[rows]
        tokens = None if trace.token_ids is None else trace.token_ids[rows]
        before = None if trace.pre_attention is None else trace.pre_attention[rows].astype(np.float32)
        for layer in range(trace.layers):
            yield RoutingEvent(
                layer, int(number), ids[:, layer],
                None if weights is None else np.ascontiguousarray(weights[:, layer]),
                None if hidden is None else np.ascontiguousarray(hidden[:, layer]),
                None if logits is None else np.ascontiguousarray(logits[:, layer]), phase, tokens,
                fresh and layer == 0,
                None if before is None else np.ascontiguousarray(before[:, min(layer + 1, trace.layers - 1)]),
            )  # fmt: skip


def tell(predictor: Any, trace: Any) -> None:
    """Lets a predictor that reads the future know the trace whose events it will be shown; others are told nothing."""
    if getattr(predictor, "clairvoyant", False):
        predictor.know(trace)
