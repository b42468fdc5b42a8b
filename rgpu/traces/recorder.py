"""Records the routing of any transformers model that goes through the experts interface.

Legend: T rows of a pass, L MoE layers, K top-k, E experts, D hidden size.
"""

import inspect
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import transformers

from rgpu.errors import InputError
from rgpu.traces.moe_layers import MoELayer, decoder_layer, entering, model_identity, moe_layers
from rgpu.traces.passes import PassInfo, PassTracker
from rgpu.traces.trace import PADDING, PROMPT, TraceHeader
from rgpu.traces.writer import TraceWriter

_F16_MAX = 65504.0


class TraceRecorder:
    """`with TraceRecorder(model, "trace.safetensors") as recorder: model.generate(...)` writes a trace of every pass.

    Routing is taken where it is decided: the expert ids and gate weights handed to the experts modules (their order
    is the router's), so biased and grouped routers come out right; `hidden=True` adds their input,
    `router_logits=True` the raw logits of the router modules, `pre_attention=True` the residual stream that enters each
    MoE layer, before its norm and attention. Hooks only: numbers and settings of the model are
    untouched, and the hooks are gone on leaving, also after an exception, which discards the trace. Padding rows, and
    rows after the end of their text in a batch, are left out unless `padding=True` keeps them with phase 2 (live runs
    replay them).

    Each call with an empty cache begins one sequence a batch row; describe them before the call with `sequences`.
    `target` is a path, or an open `TraceWriter`, which then stays open and in the caller's hands. `expert_bytes`:
    sizes a layer, for models that hold no expert parameters themselves.
    """

    def __init__(
        self,
        model: Any,
        target: TraceWriter | Path | str,
        *,
        hidden: bool = False,
        router_logits: bool = False,
        pre_attention: bool = False,
        padding: bool = False,
        on_policy: bool = True,
        eos_ids: Collection[int] | None = None,
        expert_bytes: Sequence[int] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.hidden, self.router_logits, self.padding = model, hidden, router_logits, padding
        self.layers = moe_layers(model)
        self._decoders = [decoder_layer(model, layer) for layer in self.layers] if pre_attention else []
        if router_logits and any(layer.router is None for layer in self.layers):
            raise InputError(
                "cannot record router_logits: got a layer without a router module; set router_logits=false"
            )
        self._owned = not isinstance(target, TraceWriter)
        self._target = target
        self._header_parts: dict[str, Any] = {"on_policy": on_policy, "expert_bytes": expert_bytes}
        self._header_parts["provenance"] = provenance or {}
        self._eos_ids = eos_ids
        self._handles: list[Any] = []
        self._metas: list[dict[str, Any]] = []
        self._pending: dict[str, dict[int, np.ndarray]] = {}
        self._kept_T: np.ndarray | None = None
        self._first_pass = 0
        self._first_sequence = 0

    @property
    def tokens(self) -> int:
        """Rows recorded so far."""
        return self.writer.tokens

    def sequences(self, metas: Sequence[dict[str, Any]]) -> None:
        """Describe the sequences of the next call, one dict a batch row (see `TraceHeader.sequences`)."""
        self._metas = [dict(meta) for meta in metas]

    def __enter__(self) -> "TraceRecorder":
        header = make_header(self.model, self.layers, **self._header_parts)
        self.writer = TraceWriter(self._target, header) if not isinstance(self._target, TraceWriter) else self._target
        self._first_pass, self._first_sequence = self.writer.next_pass, len(self.writer.header.sequences)
        self.tracker = PassTracker(self.model, self._eos_ids)
        try:
            self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
            self.tracker.attach()
            for index, layer in enumerate(self.layers):
                self._hook(index, layer)
            self._handles.append(self.model.register_forward_hook(self._end))
        except BaseException:
            self._restore()
            if self._owned:
                self.writer.abort()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()
        if not self._owned:
            return
        if kind is None:
            self.writer.close()
        else:
            self.writer.abort()

    def _restore(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._pending = [], {}
        self.tracker.detach()

    def _hook(self, index: int, layer: MoELayer) -> None:
        names = list(inspect.signature(layer.experts.forward).parameters)[:3]  # hidden states, ids, weights

        def routed(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if is_capturing():  # nothing is computed yet; what a graph gives is recorded when it runs
                return
            x_TD, ids_TK, weights_TK = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
            self._keep("expert_ids", index, ids_TK)
            self._keep("weights", index, weights_TK)
            if self.hidden:
                self._keep("hidden", index, x_TD)

        def scored(_module: Any, _args: Any, output: Any) -> None:
            if is_capturing():
                return
            logits = output[0] if isinstance(output, tuple) else output
            self._keep("router_logits", index, logits.reshape(-1, logits.shape[-1]))

        def entered(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not is_capturing():
                self._keep("pre_attention", index, entering(module, args, kwargs))

        self._handles.append(layer.experts.register_forward_pre_hook(routed, with_kwargs=True))
        if self.router_logits:
            self._handles.append(layer.router.register_forward_hook(scored))
        if self._decoders:
            self._handles.append(self._decoders[index].register_forward_pre_hook(entered, with_kwargs=True))

    def _keep(self, name: str, index: int, values: torch.Tensor) -> None:
        """Put one layer's rows aside: ids as int64, floats as float16, on the CPU."""
        info = self.tracker.current
        if info is None:
            raise InputError(
                "cannot record: got a call of an inner module; expected calls of the model itself; call that"
            )
        if len(values) != info.rows:
            raise InputError(
                f"cannot record layer {index}: got {len(values)} rows; expected {info.rows}, batch times tokens"
            )
        layers = self._pending.setdefault(name, {})
        if index in layers:
            raise InputError(
                f"cannot record layer {index}: got two calls in one pass; expected one; choose another model"
            )
        if self._kept_T is None:
            kept_T = np.ones(info.rows, bool) if self.padding else info.phase_T != PADDING
            self._kept_T = np.flatnonzero(kept_T)
        values = values.detach()
        if len(self._kept_T) < info.rows:
            values = values[torch.from_numpy(self._kept_T).to(values.device)]
        if name != "expert_ids":
            values = values.clamp(-_F16_MAX, _F16_MAX).to(torch.float16)
        layers[index] = values.cpu().numpy()

    def _begin(self, *_: Any) -> None:
        self._pending, self._kept_T = {}, None  # a pass that failed leaves nothing behind

    def _end(self, *_: Any) -> None:
        info = self.tracker.last
        if info is None or self._kept_T is None or "expert_ids" not in self._pending:
            raise InputError(
                "cannot record: got a pass without a call of the experts; expected one a layer; choose another model"
            )
        header = self.writer.header
        if info.fresh:
            self._begin_sequences(info, header)
        kept = self._kept_T
        self._count_prompt(info, kept, header)
        arrays = {name: self._stack(layers) for name, layers in self._pending.items()}
        ids = arrays["expert_ids"]
        ids[ids >= header.num_experts] = -1  # expert-parallel sentinel: computed elsewhere
        header.top_k = ids.shape[2]
        self.writer.append(
            info.sequence_T[kept] + self._first_sequence,
            positions=info.position_T[kept],
            passes=np.full(len(kept), info.pass_id + self._first_pass, np.int32),
            phase=info.phase_T[kept],
            token_ids=info.token_T[kept],
            **arrays,
        )
        self._begin()

    def _begin_sequences(self, info: PassInfo, header: TraceHeader) -> None:
        metas, self._metas = self._metas or [{} for _ in range(info.batch)], []
        if len(metas) != info.batch:
            raise InputError(
                f"cannot record: got {len(metas)} sequence descriptions; expected {info.batch}, one a batch row"
            )
        failed = self._first_sequence + int(info.sequence_T[0]) - len(header.sequences)  # begun by passes that raised
        header.sequences.extend({} for _ in range(failed))
        header.sequences.extend({"kind": "generation", **meta, "prompt_tokens": 0} for meta in metas)

    def _count_prompt(self, info: PassInfo, kept: np.ndarray, header: TraceHeader) -> None:
        owners = info.sequence_T[kept][info.phase_T[kept] == PROMPT] + self._first_sequence
        for sequence, count in zip(*np.unique(owners, return_counts=True), strict=True):
            header.sequences[sequence]["prompt_tokens"] += int(count)

    def _stack(self, layers: dict[int, np.ndarray]) -> np.ndarray:
        """[T, L, ...] of what each layer gave; a layer that was skipped reads as not recorded."""
        some = next(iter(layers.values()))
        absent = np.full_like(some, -1 if some.dtype.kind == "i" else 0)
        return np.stack([layers.get(index, absent) for index in range(len(self.layers))], axis=1)


def is_capturing() -> bool:
    """Whether what is called now is being captured into a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def make_header(
    model: Any,
    layers: list[MoELayer],
    *,
    on_policy: bool = True,
    expert_bytes: Sequence[int] | None = None,
    provenance: dict[str, Any] | None = None,
) -> TraceHeader:
    """Header of a trace of `model`; `top_k` is filled in by the first pass."""
    name, revision = model_identity(model)
    quantisation = getattr(model.config, "quantization_config", None)
    method = (
        quantisation.get("quant_method")
        if isinstance(quantisation, dict)
        else getattr(quantisation, "quant_method", None)
    )
    made = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    sizes = [layer.expert_bytes for layer in layers] if expert_bytes is None else [int(b) for b in expert_bytes]
    return TraceHeader(
        model=name,
        revision=revision,
        num_experts=layers[0].num_experts,
        top_k=1,
        layer_ids=[layer.layer_id for layer in layers],
        expert_bytes=sizes if all(sizes) else [],
        quantisation="none" if method is None else str(getattr(method, "value", method)),
        on_policy=on_policy,
        provenance={"recorder": "rgpu", "prefill": True, **made, **(provenance or {})},
    )
