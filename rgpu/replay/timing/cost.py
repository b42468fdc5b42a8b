"""`ModelCost`: bytes and operations of one model, layer by layer, beside its routed experts.

Legend: L MoE layers. Sliding-window layers read at most `window` tokens of context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.replay.timing.sourced import numbers

_REQUIRED = ("dense_layer_bytes", "kv_bytes_per_token", "expert_bytes")
_OPTIONAL = ("router_bytes", "shared_expert_bytes", "head_bytes", "dense_params", "expert_params", "head_params",
             "attention_flop_per_context", "window", "windowed_every")  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Arrays float64 [L]: `dense_bytes` (attention, router, shared experts, norms; the last layer also the output head),
    `dense_flop` per token without the head, `kv_bytes` per token of context, `attention_flop` per token and token of
    context, `expert_bytes` and `expert_flop` per token of one expert; `windowed` bool [L]. The output head: `head_bytes` of
    the last layer's, read where a pass yields a token, `head_flop` per token yielded. `source`: where the numbers come from."""

    name: str
    dense_bytes: np.ndarray
    dense_flop: np.ndarray
    kv_bytes: np.ndarray
    attention_flop: np.ndarray
    expert_bytes: np.ndarray
    expert_flop: np.ndarray
    windowed: np.ndarray
    window: int
    source: str
    head_bytes: float = 0.0
    head_flop: float = 0.0

    @property
    def layers(self) -> int:
        return len(self.dense_bytes)

    def packed(self, top_k: int) -> np.ndarray:
        """float64 [L, 9] for the kernels: dense bytes without the head, dense flop, kv bytes, attention flop, expert flop,
        windowed, top-k, bytes and flop of the head."""
        head = np.zeros((self.layers, 2))
        head[-1] = self.head_bytes, self.head_flop
        return np.column_stack(
            [self.dense_bytes - head[:, 0], self.dense_flop, self.kv_bytes, self.attention_flop, self.expert_flop,
             self.windowed, np.full(self.layers, top_k), head]
        ).astype(np.float64)  # fmt: skip


def cost_of(data: Mapping[str, Any], layers: int, expert_bytes: tuple[int, ...] = ()) -> ModelCost:
    """A cost from `conf/cost/*.yaml`; a trace's own expert sizes, where known, replace the file's."""
    name = str(data.get("name", ""))
    values, sources = numbers(
        {k: v for k, v in data.items() if k not in ("name", "models")}, _REQUIRED, _OPTIONAL, f"cost {name}"
    )
    get = {n: values.get(n, 0.0) for n in (*_REQUIRED, *_OPTIONAL)}
    dense = np.full(layers, get["dense_layer_bytes"] + get["router_bytes"] + get["shared_expert_bytes"])
    flop = np.full(layers, 2 * get["dense_params"])
    dense[-1] += get["head_bytes"]
    every = int(get["windowed_every"])
    windowed = np.arange(layers) % every == 0 if every else np.zeros(layers, bool)
    experts = np.asarray(expert_bytes, np.float64) if any(expert_bytes) else np.full(layers, get["expert_bytes"])
    source = "; ".join(f"{n}: {s}" for n, s in sources.items())
    return ModelCost(
        name, dense, flop, np.full(layers, get["kv_bytes_per_token"]), np.full(layers, get["attention_flop_per_context"]),
        experts, np.full(layers, 2 * get["expert_params"]), windowed, int(get["window"]), source,
        get["head_bytes"], 2 * get["head_params"],
    )  # fmt: skip


def experts_only(layers: int, expert_bytes: tuple[int, ...], name: str = "experts only") -> ModelCost:
    """The cost of a model of which only a trace's expert sizes are known: attention and the rest take no time."""
    if not any(expert_bytes):
        raise InputError(
            "cost: got a trace without expert sizes; expected expert_bytes in its header; give trace.expert_bytes"
        )
    none = np.zeros(layers)
    return ModelCost(
        name, none, none, none, none, np.asarray(expert_bytes, np.float64), none, np.zeros(layers, bool), 0,
        "expert sizes of the trace header; attention, router and head unknown and taken as free",
    )  # fmt: skip
