"""Value objects shared by every part: model shape, expert identity, one routing event.

Legend: T tokens of one event, K top-k, E experts a layer, L MoE layers, D hidden size.
"""

from dataclasses import dataclass, field

import numpy as np


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

    `experts_TK` int16 in rank order; `weights_TK` float32 gate weights; `hidden_TD` float32 input of the router;
    `logits_TE` float32 router logits. Floats are already rounded to the dtype a trace stores, so that live and replay
    decide on the same numbers. `phase_T` uint8: 0 prompt, 1 decode, 2 padding row.
    """

    layer: int
    pass_id: int
    experts_TK: np.ndarray
    weights_TK: np.ndarray | None = None
    hidden_TD: np.ndarray | None = None
    logits_TE: np.ndarray | None = None
    phase_T: np.ndarray | None = None
