"""Bytes of a model from its config alone: a skeleton on the meta device, no weights read.

Legend: I expert width, D hidden size.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rgpu.errors import InputError
from rgpu.planning.model_facts import LayerParts, ModelFacts
from rgpu.quant.formats import by_name
from rgpu.quant.layout import SlotLayout
from rgpu.runtime.kv_cache import head_widths, kv_layers
from rgpu.store.layout import DTYPES, ExpertLayout
from rgpu.traces.moe_layers import MoELayer, moe_layers


def read_facts(
    model: str | Path, dtype: str | None = None, format: str | None = None, **options: Any
) -> ModelFacts:  # fmt: skip
    """Facts of the model in a folder (config.json is enough) or of a hub name (only its config is fetched).

    `dtype` of the dense part (None: the config's own); `format` of the experts: a dtype's name or one of `rgpu.quant`,
    with its `options` (None: as the dense part). Raises `InputError` for what is missing, unknown or not a gated MoE model.
    """
    config = read_config(model)
    own = str(getattr(config.get_text_config(), "dtype", None) or "bfloat16").removeprefix("torch.")
    dtype = dtype or (own if own in DTYPES else "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"dtype: got {dtype!r}; expected one of {', '.join(DTYPES)}")
    return facts_of(skeleton_of(config, DTYPES[dtype]), dtype, format or dtype, name=Path(model).name, **options)


def read_config(model: str | Path) -> PretrainedConfig:
    """The config of a folder or a hub name; `InputError` in one line for what cannot be had."""
    name, folder = str(model), Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"no model at {name}: got a folder without config.json; expected a transformers model folder")
    if not folder.is_dir() and (
        folder.exists() or folder.is_absolute() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    ):
        raise InputError(f"no model at {name}: got no such folder; expected a model folder or a hub name 'owner/name'")
    hub = logging.getLogger("huggingface_hub")  # logs a line for every attempt to reach the hub
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise InputError(f"cannot read the config of {name}: got {line}; give a folder with its config.json") from None
    finally:
        hub.setLevel(level)
    return config


def skeleton_of(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `dtype` on the meta device, whatever its checkpoint is quantised to; `InputError` where there is none."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    mapping: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise InputError(
            f"cannot plan: got model type '{config.model_type}' without a causal language model in transformers; expected "
            "a Mixture-of-Experts one such as qwen3_moe or olmoe"
        )
    try:
        with torch.device("meta"):
            skeleton: PreTrainedModel = mapping[type(config)]._from_config(config, dtype=dtype)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError, AssertionError) as error:
        line = " ".join(str(error).split())[:160]
        raise InputError(f"cannot plan {config.model_type}: got a config that makes no model: {line}") from None
    return skeleton


def facts_of(skeleton: PreTrainedModel, dtype: str, format: str, name: str = "", **options: Any) -> ModelFacts:
    """Facts of a model on the meta device, which cannot run afterwards."""
    layers = moe_layers(skeleton)
    config, experts = skeleton.config.get_text_config(), layers[0].experts
    intermediate, hidden = _sizes(layers)
    bias = bool(getattr(experts, "has_bias", False))
    layout = expert_layout(intermediate, hidden, bias, format, **options)
    sums = _Sums(skeleton, layers, DTYPES[dtype])
    head = skeleton.get_output_embeddings()
    kv = kv_layers(skeleton)
    key, value = head_widths(config)  # of unequal widths torch's fused attention takes none, and materialises scores
    top_k = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    if not top_k:
        raise InputError(f"cannot plan {config.model_type}: got no num_experts_per_tok; expected it in config.json")
    return ModelFacts(
        name=name or str(config.model_type), dtype=dtype, itemsize=DTYPES[dtype].itemsize, format=format,
        layer_ids=tuple(layer.layer_id for layer in layers), experts=layers[0].num_experts, top_k=int(top_k),
        hidden=hidden, intermediate=intermediate, expert_bytes=layout.payload_bytes, expert_stride=layout.stride,
        expert_weights=3 * intermediate * hidden, embedding_bytes=sums.embedding, head_bytes=sums.head,
        head_weights=head.weight.numel() if head is not None else 0, other_bytes=sums.other,
        parts=tuple(sums.parts()), kv=kv, vocab=int(config.vocab_size),
        max_context=int(getattr(config, "max_position_embeddings", None) or 0), layer_width=sums.width(),
        expanded_kv=DTYPES[dtype].itemsize * int(config.num_attention_heads) * (key + value),
        heads=int(config.num_attention_heads), scores=config._attn_implementation == "eager" or key != value,
    )  # fmt: skip


def expert_layout(intermediate: int, hidden: int, bias: bool, format: str, **options: Any) -> ExpertLayout | SlotLayout:
    """How one expert lies in a slot; `InputError` for an unknown format and sizes it does not take."""
    if format in DTYPES:
        if options:
            raise InputError(f"format {format}: got the option {min(options)}; expected none; set format=int4, say")
        return ExpertLayout(intermediate, hidden, DTYPES[format], bias)
    layout = SlotLayout(intermediate, hidden, by_name(format, **options), bias)
    _ = layout.sections  # raises where the sizes do not fit
    return layout


def _sizes(layers: list[MoELayer]) -> tuple[int, int]:
    """(I, D) of the routed experts; `InputError` unless they are gated and all of one size."""
    found = set()
    for layer in layers:
        module = layer.experts
        down = getattr(module, "down_proj", None)
        if not hasattr(module, "gate_up_proj") or down is None:
            raise InputError(
                f"cannot plan: got experts of type {type(module).__name__}; expected gated ones (gate_up_proj, down_proj) "
                "as in qwen3_moe; choose such a model"
            )
        found.add(tuple(down.shape[1:] if module.is_transposed else down.shape[:0:-1]))
    if len(found) > 1:
        raise InputError(f"cannot plan: got experts of sizes {sorted(found)}; expected one size; choose another model")
    ((intermediate, hidden),) = found
    return int(intermediate), int(hidden)


class _Sums:
    """Where the bytes of a model's tensors belong; each tensor counts once."""

    def __init__(self, skeleton: PreTrainedModel, layers: list[MoELayer], dtype: torch.dtype) -> None:
        match = re.match(r"(.*?)\b\d+\.", layers[0].name)
        self.prefix = match[1] if match else ""
        self.rows: dict[int, dict[str, int]] = {}
        self.widths: dict[int, int] = {}
        self.embedding = self.head = self.other = 0
        plan = skeleton._get_dtype_plan(dtype)
        kept = re.compile("|".join(pattern.replace("*", ".*") for pattern in plan)) if plan else None
        routed = {id(p) for layer in layers for p in layer.experts.parameters()}
        routers = {id(p) for layer in layers if layer.router is not None for p in layer.router.parameters()}
        ends = [m and {id(p) for p in m.parameters()} for m in _ends(skeleton)]
        seen = set(routed)
        stored = set(skeleton.state_dict())
        for name, tensor in (*skeleton.named_parameters(), *skeleton.named_buffers()):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            wide = kept and name in stored and tensor.is_floating_point() and kept.search(name)
            size = tensor.numel() * (4 if wide else tensor.element_size())
            if id(tensor) in (ends[0] or ()):
                self.embedding += size
            elif id(tensor) in (ends[1] or ()):
                self.head += size
            elif (at := self._layer(name)) is None:
                self.other += size
            else:
                row = self.rows.setdefault(at, {})
                kind = "router" if id(tensor) in routers else _kind(name)
                row[kind] = row.get(kind, 0) + size
                if tensor.dim() > 1 and isinstance(tensor, nn.Parameter):
                    row["weights"] = row.get("weights", 0) + tensor.numel()
        for name, module in skeleton.named_modules():
            if isinstance(module, nn.Linear) and (at := self._layer(name)) is not None:
                self.widths[at] = self.widths.get(at, 0) + module.out_features

    def _layer(self, name: str) -> int | None:
        found = re.match(r"(\d+)\.", name[len(self.prefix) :]) if name.startswith(self.prefix) else None
        return int(found[1]) if found else None

    def parts(self) -> list[LayerParts]:
        return [LayerParts(**self.rows.get(at, {})) for at in range(max(self.rows, default=-1) + 1)]

    def width(self) -> int:
        return max(self.widths.values(), default=0)


def _ends(skeleton: PreTrainedModel) -> tuple[nn.Module | None, nn.Module | None]:
    return skeleton.get_input_embeddings(), skeleton.get_output_embeddings()


def _kind(name: str) -> str:
    """Which part of a layer a tensor belongs to, by the names transformers gives its modules."""
    for kind, pattern in (
        ("shared", r"shared_(expert|mlp)"), ("norms", r"norm"), ("router", r"\.(gate|router)\."),
        ("attention", r"attn|attention|mamba|mixer|conv"),
    ):  # fmt: skip
        if re.search(pattern, name):
            return kind
    return "other"
