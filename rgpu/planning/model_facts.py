"""`ModelFacts`: what a model takes in memory and time, as plain numbers read off its config (`rgpu.runtime.model_bytes`).

Legend: L MoE layers, M layers of the model, C tokens of context.
"""

from dataclasses import dataclass

import numpy as np

from rgpu.replay.timing.cost import ModelCost


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    """Bytes of one layer beside its routed experts, buffers included. `weights`: numbers in its matrices, of which each
    token uses all (two operations each)."""

    attention: int = 0
    router: int = 0
    shared: int = 0
    norms: int = 0
    other: int = 0
    weights: int = 0

    @property
    def bytes(self) -> int:
        return self.attention + self.router + self.shared + self.norms + self.other


@dataclass(frozen=True, slots=True)
class KvLayer:
    """What one layer's cache keeps of a sequence: `per_token` bytes for each of its last `window` - 1 tokens (0: of all)
    and `state` bytes whatever its length (linear attention). `flop_per_context`: operations per token and token of
    context."""

    per_token: int = 0
    window: int = 0
    state: int = 0
    flop_per_context: int = 0

    def tokens(self, context: int) -> int:
        """Tokens kept of `context`."""
        return min(context, self.window - 1) if self.window else context

    def bytes(self, context: int) -> int:
        """Bytes kept of a sequence of `context` tokens."""
        return self.state + self.per_token * self.tokens(context) if context else 0

    def fixed_bytes(self, context: int) -> int:
        """Bytes that a cache made for `context` tokens keeps of a sequence: of a window all its tokens."""
        return self.state + self.per_token * (min(context, self.window) if self.window else context) if context else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model's numbers for a dtype of the dense part and a storage format of the experts.

    `expert_bytes` of one expert as results count it, `expert_stride` as it lies in a slot, `expert_weights` numbers in its
    matrices. `embedding_bytes`; `head_bytes`: the output head's own (0: tied to the embedding), `head_weights` numbers in
    it; `other_bytes` of neither (last norm, rotary frequencies). `parts` and `kv` [M]; `layer_ids` [L]: which of the M route.
    `layer_width`: outputs of all linear maps of the widest layer; `expanded_kv`: bytes per token of context of one layer's
    keys and values spread over all heads; `heads`; `scores`: attention scores are materialised. `max_context` 0: unknown.
    """

    name: str
    dtype: str
    itemsize: int
    format: str
    layer_ids: tuple[int, ...]
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    expert_bytes: int
    expert_stride: int
    expert_weights: int
    embedding_bytes: int
    head_bytes: int
    head_weights: int
    other_bytes: int
    parts: tuple[LayerParts, ...]
    kv: tuple[KvLayer, ...]
    vocab: int
    max_context: int
    layer_width: int
    expanded_kv: int
    heads: int
    scores: bool = False

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self.layer_ids)

    @property
    def dense_bytes(self) -> int:
        """Everything but routed experts, tied weights once."""
        return self.embedding_bytes + self.head_bytes + self.other_bytes + sum(part.bytes for part in self.parts)

    @property
    def experts_bytes(self) -> int:
        """All routed experts as they lie in a store."""
        return self.layers * self.experts * self.expert_stride

    def kv_bytes(self, context: int, batch: int = 1, fixed: bool = False) -> int:
        """The cache of `batch` sequences of `context` tokens; `fixed`: one that is made for so many in advance."""
        return batch * sum(layer.fixed_bytes(context) if fixed else layer.bytes(context) for layer in self.kv)

    def cost(self, layers: int = 0, top_k: int = 0) -> ModelCost:
        """The same for the virtual clock: a layer without experts counts with the next MoE layer (after the last one, with
        it). States of linear attention are read like weights.

        With `layers` and `top_k` of another model's trace: a cost of so many equal layers, each the mean of this model's,
        with experts so large that a layer's `top_k` move this model's bytes. Its times hold after `layer_scale`.
        """
        own = np.zeros((self.layers, 4))
        windowed = np.zeros(self.layers, bool)
        for at, part in enumerate(self.parts):
            row = min(int(np.searchsorted(self.layer_ids, at)), self.layers - 1)
            kv = self.kv[at] if at < len(self.kv) else KvLayer()
            own[row] += part.bytes + kv.state, 2 * part.weights, kv.per_token, kv.flop_per_context
            windowed[row] |= at == self.layer_ids[row] and kv.window > 0
        head = float(self.head_weights * self.itemsize)
        scale, each = 1.0, np.full(self.layers, float(self.expert_bytes))
        source = "config of the model: tensors of a skeleton, cache of a pass without weights"
        if layers:
            scale = self.layers / layers
            own, windowed = np.repeat(own.mean(0)[None], layers, axis=0), np.zeros(layers, bool)
            each = np.full(layers, self.expert_bytes * self.top_k / (top_k or self.top_k))
            source += f"; as {layers} equal layers"
        own[-1, 0] += head / scale
        flop = 2.0 * self.expert_weights * each / self.expert_bytes
        window = max((layer.window for layer in self.kv), default=0)
        return ModelCost(
            self.name, own[:, 0], own[:, 1], own[:, 2], own[:, 3], each, flop, windowed, window, source, head / scale,
            2.0 * self.head_weights / scale,
        )  # fmt: skip

    def layer_scale(self, layers: int) -> float:
        """What times of a cost of `layers` equal layers are multiplied with."""
        return self.layers / layers
