"""What a run did, pass by pass, and where its time went."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rgpu.policies.loop import COUNTS, DEMAND_LOADS, HITS, LOADED_BYTES, PREFETCH_HITS, PROACTIVE_LOADS
from rgpu.traces.moe_layers import moe_layers
from rgpu.traces.recorder import is_capturing
from rgpu.transfer.counts import Observer, Span

DEVICE, LINK = "device", "link"  # tracks, as in the simulator's timelines


@dataclass(frozen=True, slots=True)
class PassRow:
    """One forward pass: `rows` evaluated, when it began and ended in seconds, what the decision loop counted in it (see
    `rgpu.policies.loop`), seconds spent waiting for copies, copies queued at its end, what a lossy mode did in it, and the
    slots of all pools, staging included."""

    rows: int
    begin_s: float
    end_s: float
    counts: np.ndarray
    stall_s: float
    queued: int
    lossy: dict[str, int] = field(default_factory=dict)
    slots: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """One stretch of a track of the timeline, in seconds."""

    track: str
    name: str
    begin_s: float
    end_s: float
    args: dict[str, Any]


class Telemetry:
    """Watches a model's passes and, with `slices`, what each MoE layer and each copy took. Attach before a run; `rows` and
    `slices` grow with it. Times are those of `time.perf_counter`. `also` gets every piece of a copy too, on the thread that
    copied it."""

    def __init__(self, slices: bool = False, also: Observer | None = None) -> None:
        self._also = also
        self.rows: list[PassRow] = []
        self.slices: list[Slice] | None = [] if slices else None
        self._begin_s = self._since_s = 0.0

    def observe(self, span: Span) -> None:
        """A piece of a copy, from the transfer engine's own thread."""
        if self._also is not None:
            self._also(span)
        if self.slices is not None:
            args = {"layer": span.key.layer, "expert": span.key.expert, "bytes": span.nbytes, "slot": span.slot}
            name = "copy" if span.kind == "demand" else "copy ahead"
            self.slices.append(Slice(LINK, name, span.begin_s, span.end_s, args))

    def attach(self, model: Any, controller: Any, transfer: Any, stack: ExitStack, rerouter: Any = None) -> None:
        """Hook into a model whose experts `controller` decides, `transfer` copies and `rerouter`, in a lossy run, chooses;
        `stack` undoes it."""
        state: dict[str, Any] = {"counts": np.zeros(COUNTS, np.int64), "stall_s": 0.0, "lossy": {}}

        def begin(*_: Any) -> None:
            self._begin_s = self._since_s = time.perf_counter()
            state["counts"], state["stall_s"] = controller.counts.copy(), transfer.counts().stall_s
            state["lossy"] = {} if rerouter is None else rerouter.per_pass()

        on_gpu = any(values.is_cuda for values in model.parameters())

        def end(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if on_gpu:  # the last of the pass is only queued
                torch.cuda.current_stream().synchronize()
            end_s, done = time.perf_counter(), transfer.counts()
            lossy = {} if rerouter is None else rerouter.per_pass()
            if self.slices is not None:
                self.slices.append(Slice(DEVICE, "head", self._since_s, end_s, {}))
            self.rows.append(
                PassRow(_rows(args, kwargs), self._begin_s, end_s, controller.counts - state["counts"],
                        done.stall_s - state["stall_s"], done.queued,
                        {name: count - state["lossy"][name] for name, count in lossy.items()},
                        sum(controller.slots) + controller.pools * controller.staging)
            )  # fmt: skip

        stack.callback(model.register_forward_pre_hook(begin).remove)
        stack.callback(model.register_forward_hook(end, with_kwargs=True).remove)
        if self.slices is not None:
            for index, layer in enumerate(moe_layers(model)):
                self._watch(layer.experts, index, stack)

    def _watch(self, experts: Any, layer: int, stack: ExitStack) -> None:
        slices = self.slices
        assert slices is not None

        def before(*_: Any) -> None:
            if is_capturing():
                return
            now_s = time.perf_counter()
            slices.append(Slice(DEVICE, "attention and router", self._since_s, now_s, {"layer": layer}))
            self._since_s = now_s

        def after(*_: Any) -> None:
            if is_capturing():
                return
            now_s = time.perf_counter()
            slices.append(Slice(DEVICE, "experts", self._since_s, now_s, {"layer": layer}))
            self._since_s = now_s

        stack.callback(experts.register_forward_pre_hook(before).remove)
        stack.callback(experts.register_forward_hook(after).remove)

    def clear(self) -> None:
        """Forget what was seen so far."""
        self.rows.clear()
        if self.slices is not None:
            self.slices.clear()

    def summary(self) -> dict[str, Any]:
        """Seconds and counts of the passes seen: `ttft_s` (the first pass), `tpot_s` median and 95th percentile over the
        later ones (a token of every sequence each), `stall_s` in all, `queued` at most, and lists a token."""
        later = self.rows[1:]
        took = np.array([row.end_s - row.begin_s for row in later])
        return {
            "ttft_s": self.rows[0].end_s - self.rows[0].begin_s if self.rows else None,
            "tpot_s": float(np.median(took)) if later else None,
            "tpot_p95_s": float(np.percentile(took, 95)) if later else None,
            "stall_s": sum(row.stall_s for row in self.rows),
            "queued_most": max((row.queued for row in self.rows), default=0),
            "per_pass": [
                {"rows": row.rows, "seconds": round(row.end_s - row.begin_s, 6), "stall_s": round(row.stall_s, 6),
                 "hits": int(row.counts[HITS]), "prefetch_hits": int(row.counts[PREFETCH_HITS]),
                 "misses": int(row.counts[DEMAND_LOADS]), "loads_ahead": int(row.counts[PROACTIVE_LOADS]),
                 "bytes_loaded": int(row.counts[LOADED_BYTES]), "queued": row.queued, "slots": row.slots, **row.lossy}
                for row in self.rows
            ],
        }  # fmt: skip


def _rows(args: Any, kwargs: Any) -> int:
    """Rows of tokens that a pass evaluates."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args):
        if value is not None and hasattr(value, "shape"):
            return int(value.shape[0] * value.shape[1])
    return 0
