"""Models of true size without a checkpoint: random dense weights on a GPU, random experts in page-locked host memory.

Speed does not depend on what the numbers are, and text from such a model means nothing. Legend: L MoE layers, E experts of a
layer, K top-k, T tokens, B bytes of a slot.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, PretrainedConfig, PreTrainedModel, Qwen3MoeConfig
from transformers.initialization import no_init_weights

from rgpu.experiments.benching.cases import fill
from rgpu.quant.layout import SlotLayout
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.experts import without_experts
from rgpu.traces.moe_layers import moe_layers
from rgpu.types import ExpertKey, MoEShape

DIFFERENT = 64  # experts whose bytes differ; the others repeat them


def qwen3_30b(layers: int = 48) -> PretrainedConfig:
    """The dimensions of Qwen3-30B-A3B."""
    return Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
        norm_topk_prob=True, max_position_embeddings=40960, tie_word_embeddings=False,
    )  # fmt: skip


def gpt_oss(layers: int, experts: int, full: bool = False) -> PretrainedConfig:
    """The dimensions of gpt-oss-20b (24 layers of 32 experts) or gpt-oss-120b (36 of 128), every other layer with its sliding
    window of 128 tokens; `full`: with full attention in every layer instead."""
    kinds = ["full_attention"] * 2 if full else ["sliding_attention", "full_attention"]
    return GptOssConfig(
        vocab_size=201088, hidden_size=2880, intermediate_size=2880, num_hidden_layers=layers, num_attention_heads=64,
        num_key_value_heads=8, head_dim=64, num_local_experts=experts, num_experts_per_tok=4,
        max_position_embeddings=131072, layer_types=kinds * (layers // 2), sliding_window=128,
    )  # fmt: skip


def dense_model(
    config: PretrainedConfig, architecture: Architecture, device: torch.device, seed: int
) -> PreTrainedModel:
    """The model without its experts, random in bfloat16."""
    with (
        without_experts(architecture.experts_class),
        no_init_weights(),
        torch.device(device),
    ):  # what it would fill is gone
        model: PreTrainedModel = architecture.model_class._from_config(config, dtype=torch.bfloat16)
    make = torch.Generator(device).manual_seed(seed)
    for name, values in model.named_parameters():
        if values.dim() > 1:
            values.data.normal_(0, 0.02, generator=make)
        else:
            values.data.fill_(0.0 if name.endswith(("bias", "sinks")) else 1.0)
    return model.eval().requires_grad_(False)


class MadeSource:
    """An `ExpertSource` of random experts in host memory."""

    in_place = True

    def __init__(self, layout: SlotLayout, layers: int, experts: int, device: torch.device, seed: int) -> None:
        self.layout = layout
        self.layer_ids = tuple(range(layers))
        self.experts = experts
        some = torch.empty(min(DIFFERENT, layers * experts), layout.stride, dtype=torch.uint8, device=device)
        fill(layout, some, torch.Generator(device).manual_seed(seed))
        one = some.cpu()
        self._rows = torch.empty(layers * experts, layout.stride, dtype=torch.uint8)
        for start in range(0, len(self._rows), len(one)):
            part = self._rows[start : start + len(one)]
            part.copy_(one[: len(part)])

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        return self._rows.nbytes

    mapped_bytes = 0

    @property
    def ram_bytes(self) -> int:
        """See `ExpertSource`."""
        return self.nbytes

    def shape(self, top_k: int) -> MoEShape:
        """See `ExpertSource`."""
        layers = len(self.layer_ids)
        sizes = (self.layout.payload_bytes,) * layers
        return MoEShape(layers, self.experts, top_k, self.layout.hidden, sizes, self.layer_ids)

    @property
    def rows_SB(self) -> torch.Tensor:
        """See `ExpertSource`."""
        return self._rows

    def row(self, key: ExpertKey) -> int:
        """See `ExpertSource`."""
        return key.layer * self.experts + key.expert

    def pin(self, key: ExpertKey) -> int | None:
        """See `ExpertSource`."""
        return self.row(key)

    def unpin(self, key: ExpertKey) -> None:
        """See `ExpertSource`."""

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """See `ExpertSource`."""
        array: np.ndarray = self._rows[self.row(key), : self.layout.nbytes].numpy()
        return array

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """See `ExpertSource`."""
        np.copyto(out, self.buffer(key)[start : start + out.nbytes])

    def close(self) -> None:
        """See `ExpertSource`."""


class ForcedRouting:
    """Puts recorded ids in the place of the routers' own, so that hits are those of a real trace. The routers run all the
    same, and so do their weights."""

    def __init__(self, ids_NLK: np.ndarray, most_rows: int, device: torch.device) -> None:
        self.ids_LNK = torch.from_numpy(np.ascontiguousarray(ids_NLK.transpose(1, 0, 2))).to(device)
        self.at = 0
        self._next_LTK = torch.zeros(ids_NLK.shape[1], most_rows, ids_NLK.shape[2], dtype=torch.int64, device=device)

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Forced in here."""
        handles = [model.register_forward_pre_hook(self._advance, with_kwargs=True)]
        for index, layer in enumerate(moe_layers(model)):
            handles.append(layer.router.register_forward_hook(self._force(index)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _advance(self, _model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        rows, there = kwargs["input_ids"].numel(), self.ids_LNK.shape[1]
        at_T = torch.arange(self.at, self.at + rows, device=self.ids_LNK.device) % there
        self._next_LTK[:, :rows].copy_(self.ids_LNK[:, at_T])
        self.at += rows

    def _force(self, index: int) -> Any:
        def forced(_module: Any, _args: Any, chosen: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            ids = [i for i, tensor in enumerate(chosen) if not tensor.is_floating_point()]
            assert len(ids) == 1, "a router that gives one tensor of ids"
            ids_TK = self._next_LTK[index, : len(chosen[ids[0]])]
            return *chosen[: ids[0]], ids_TK, *chosen[ids[0] + 1 :]

        return forced


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The whole model on the meta device."""
    mapping: Any = AutoModelForCausalLM._model_mapping
    with torch.device("meta"):
        made: PreTrainedModel = mapping[type(config)]._from_config(config, dtype=torch.bfloat16)
    return made
