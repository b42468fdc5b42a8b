"""What the stores of a model hold: its experts, and in a lossy run low-precision copies of them."""

from pathlib import Path
from typing import Any

import torch

from rgpu.checkpoint.plain import Quantizer
from rgpu.errors import InputError
from rgpu.quant.layout import SlotLayout
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.lossy import Lossy
from rgpu.store.convert import StoreForm, converted
from rgpu.store.source import ExpertSource
from rgpu.store.tiers import RAM, open_source


def store_form(architecture: Architecture, dtype: torch.dtype, quantize: Quantizer | None) -> StoreForm:
    """What the store of a model holds: floats as the model's module has them, or a storage format for the kernels."""
    if architecture.quantised is not None or quantize is not None:
        if architecture.gate is None:
            raise InputError(
                f"cannot run quantised experts of {architecture.experts_class.__name__}: got an activation that no kernel "
                "has; expected SiLU, GELU (tanh) or gpt-oss's; run float weights, without quantize"
            )
        return StoreForm(None, quantize=quantize)
    return StoreForm(
        dtype, architecture.interleaved, architecture.transposed,
        layers=int(architecture.config.get_text_config().num_hidden_layers),
    )  # fmt: skip


def check_lossy(lossy: Lossy, architecture: Architecture, device: torch.device, quantize: Quantizer | None) -> None:
    """Refuses a mode on a GPU, and low-precision copies of experts that are quantised or that no kernel computes."""
    if device.type != "cpu":
        raise InputError(
            f"lossy={lossy.name}: got device={device.type}; expected cpu, where lossy modes run; leave lossy out"
        )
    if lossy.low is None:
        return
    if quantize is not None or architecture.quantised is not None:
        raise InputError(
            f"lossy={lossy.name}: got experts that are quantised already; expected floats, which are fetched beside "
            "low-precision copies; leave quantize out, or set lossy=skip"
        )
    if architecture.gate is None:
        raise InputError(
            f"lossy={lossy.name}: got {architecture.experts_class.__name__}, whose activation no kernel has; expected SiLU, "
            "GELU (tanh) or gpt-oss's; set lossy=skip"
        )
    _ = low_layout(architecture, lossy.low).sections  # may not fit


def low_layout(architecture: Architecture, low: Any) -> SlotLayout:
    """How one copy lies in RAM."""
    return SlotLayout(architecture.intermediate, architecture.hidden, low, architecture.bias)


def low_copies(folder: Path, low: Any, cache: Path | None) -> ExpertSource:
    """All experts of the checkpoint in the format `low`, in RAM: converted on first use."""
    return open_source(converted(folder, StoreForm(None, quantize=low), cache), RAM)
