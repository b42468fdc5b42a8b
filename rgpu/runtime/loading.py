"""Loading a model: its dense part only, for a session, or whole, as the reference that a session must match."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from rgpu.checkpoint.float_expert import FloatExpert
from rgpu.errors import InputError
from rgpu.quant.layout import SlotLayout
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.experts import refuse_to_save, without_experts
from rgpu.store.convert import dense_checkpoint
from rgpu.store.layout import ExpertLayout, ExpertWeights
from rgpu.store.source import ExpertSource
from rgpu.traces.moe_layers import moe_layers
from rgpu.types import ExpertKey

EXPERT_KEYS = (r"\.experts\.", r"block_sparse_moe\.(input|output)_linear")


def load_dense(
    model_dir: Path, architecture: Architecture, dtype: torch.dtype, cache: Path | None = None
) -> PreTrainedModel:
    """The model without routed experts: their checkpoint keys are skipped before any read. It cannot be saved.

    What else a checkpoint has quantised is written once, in plain numbers, beside the stores in `cache`."""
    if architecture.quantised is not None:
        model_dir = dense_checkpoint(model_dir, cache)
    base = architecture.model_class
    attributes: dict[str, Any] = {
        "__module__": base.__module__,  # transformers looks for its decorators in the source of this module
        "_keys_to_ignore_on_load_unexpected": [*(base._keys_to_ignore_on_load_unexpected or []), *EXPERT_KEYS],
        "save_pretrained": refuse_to_save,
        "push_to_hub": refuse_to_save,
    }
    dense_class: type[PreTrainedModel] = type(base.__name__, (base,), attributes)
    with without_experts(architecture.experts_class):
        return _load(dense_class, model_dir, dtype)


def load_resident(model_dir: Path, architecture: Architecture, dtype: torch.dtype) -> PreTrainedModel:
    """The stock transformers model, all experts in memory, with its `eager` experts."""
    return _load(architecture.model_class, model_dir, dtype)


def load_dequantised(
    model_dir: Path, architecture: Architecture, store: ExpertSource, dtype: torch.dtype, cache: Path | None = None
) -> PreTrainedModel:
    """The stock model, all experts in memory as the numbers that the quantised `store` holds for them: what a quantised run
    is compared with."""
    if architecture.quantised is not None:
        model_dir = dense_checkpoint(model_dir, cache)
    layout = store.layout
    assert isinstance(layout, SlotLayout)
    model = _load(architecture.model_class, model_dir, dtype)
    floats = ExpertLayout(
        layout.intermediate, layout.hidden, dtype, layout.bias, architecture.transposed, architecture.interleaved
    )
    row = torch.zeros(floats.stride, dtype=torch.uint8)
    names = [name for name in ExpertWeights._fields if layout.bias or not name.endswith("bias")]
    for at, layer in enumerate(moe_layers(model)):
        for expert in range(store.experts):
            dense = layout.unpack(torch.from_numpy(store.buffer(ExpertKey(at, expert)).copy()))
            biases = (dense.gate_bias, dense.up_bias, dense.down_bias) if layout.bias else None
            floats.fill(row, FloatExpert((dense.gate, dense.up, dense.down), biases))  # type: ignore[arg-type]
            for name, values in zip(names, floats.views(row), strict=False):
                whole = name.replace("gate_up", "gate_up_proj").replace("down", "down_proj")
                getattr(layer.experts, whole).data[expert] = values
    return model


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the model's folder, padding on the left; None where there is none."""
    if not any((model_dir / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        model_dir, padding_side="left", local_files_only=True
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(model_class: type[PreTrainedModel], model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = model_class.from_pretrained(
            model_dir, dtype=dtype, experts_implementation="eager", local_files_only=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"cannot load {model_dir}: got {line}; expected a complete transformers model") from None
    finally:
        if bars:
            logging.enable_progress_bar()
    model.eval().requires_grad_(False)
    for tensor in {id(p): p for p in (*model.parameters(), *model.buffers())}.values():
        # Tensors mapped from a checkpoint start where the file puts them; alignment changes the last bits of a matmul.
        tensor.data = tensor.data.clone()
    loaded: PreTrainedModel = model
    return loaded
