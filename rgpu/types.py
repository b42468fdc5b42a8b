"""Value objects shared by every part: model shape, expert identity, one routing event.

Legend: T tokens of one event, K top-k, E experts a layer, L MoE layers, D hidden size.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from rgpu.errors import InputError


@dataclass(frozen=True, slots=True, order=True)
class ExpertKey:
    """One expert: `layer` counts MoE layers from 0 (dense layers are not counted)."""

    layer: int
    expert: int


@dataclass(frozen=True, slots=True)
class MoEShape:
    """Shape of a model's routed experts, in MoE layers only.

    `expert_bytes[l]` is the size of one expert of layer l as stored (0: unknown); `layer_ids[l]` its index in the model.
    """

    layers: int
    experts: int
    top_k: int
    hidden: int = 0
    expert_bytes: tuple[int, ...] = ()
    layer_ids: tuple[int, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class RoutingEvent:
    """What one MoE layer did in one forward pass (`pass_id`): the unit every policy and predictor sees.

    `experts_TK` int16 in rank order (-1: given up by a lossy run); `weights_TK` float32 gate weights; `hidden_TD` float32
    input of the router; `logits_TE` float32 router logits. Floats are already rounded to the dtype a trace stores, so that
    live and replay decide on the same numbers. `phase_T` uint8: 0 prompt, 1 decode, 2 padding row; `token_T` int32: the
    tokens that the rows are of (-1: the model was given embeddings). `fresh`: the first event of a pass all of whose sequences
    begin there; what a predictor knows of earlier ones is forgotten.

    `pre_attention_TD` float32: the residual stream before the attention of the next MoE layer (of the last one: of itself).
    It comes into being once this event's experts are computed, so a live event has it only from then on.
    """

    layer: int
    pass_id: int
    experts_TK: np.ndarray
    weights_TK: np.ndarray | None = None
    hidden_TD: np.ndarray | None = None
    logits_TE: np.ndarray | None = None
    phase_T: np.ndarray | None = None
    token_T: np.ndarray | None = None
    fresh: bool = False
    pre_attention_TD: np.ndarray | None = None


GATES = ("silu", "gelu_tanh", "gpt_oss")


@dataclass(frozen=True, slots=True)
class Gate:
    """How a gated expert joins its two projections g and u into h, computed in float32.

    `silu`: g * sigmoid(g) * u. `gelu_tanh`: gelu(g) in its tanh form, times u. `gpt_oss`: with g clamped from above and u
    to both sides at `limit`, g * sigmoid(alpha * g) * (u + 1). `limit` clamps the other kinds alike where it is above 0
    (g from above, u to both sides: DeepSeek-V4); `alpha` belongs to `gpt_oss` alone.
    """

    kind: str = "silu"
    alpha: float = 1.702
    limit: float = 0.0

    def __post_init__(self) -> None:
        finite = math.isfinite(self.limit) and math.isfinite(self.alpha)
        if not finite or self.kind not in GATES or self.limit < 0 or (self.kind == "gpt_oss" and self.limit == 0):
            raise InputError(
                f"unknown gate: got kind={self.kind}, alpha={self.alpha}, limit={self.limit}; expected one of "
                f"{', '.join(GATES)} and a limit "
                "of 0 (none) or more, above 0 for gpt_oss"
            )
