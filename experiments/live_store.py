"""What a live run's experts are stored as, where they are read from, and what serves a miss: settings checked before anything
is converted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from rgpu.experiments.live_lossy import lossy_of
from rgpu.quant.formats import by_name
from rgpu.quant.layout import SlotLayout
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.device_executor import HANDLERS as GPU_HANDLERS
from rgpu.runtime.device_executor import ON_THE_HOST
from rgpu.runtime.executor import FETCH, HANDLERS, ZERO_COPY
from rgpu.store.layout import DTYPES, ExpertLayout
from rgpu.store.tiers import DIRECT, KINDS, RAM, TIER

ROUNDED, GROUPED = ("int8", "int4", "mxfp4", "bf16"), ("int8", "int4")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Stored:
    """`format`: what the experts are held in, by name; `quantised`: kernels compute them. `options` of
    `OffloadSession.open`."""

    format: str
    quantised: bool
    options: dict[str, Any]


def dtype_of(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"dtype: got {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def stored(cfg: DictConfig, architecture: Architecture) -> Stored:
    """The store and kernels that `cfg` asks for; `InputError` for what cannot be together."""
    _check_places(cfg)
    quantize = _quantizer(cfg, architecture)
    quantised = quantize is not None or architecture.quantised is not None
    own = cfg.dtype if architecture.quantised is None else "as the checkpoint has it"
    options: dict[str, Any] = {
        "dtype": dtype_of(cfg.dtype), "store": cfg.store, "ram_experts": cfg.ram_experts, "checked": bool(cfg.checked),
        "quantize": quantize, "handler": cfg.pool.miss, "threads": cfg.threads,
    }  # fmt: skip
    if cfg.device == "cuda":
        options |= {"device": "cuda", "graphs": bool(cfg.graphs), "fused": bool(cfg.fused)}
        if cfg.pool.miss in ON_THE_HOST:
            options["host_kernel"] = _kernel("cpu")
    if cfg.device == "cuda" and cfg.pool.miss != FETCH and not quantised:
        raise InputError(
            f"pool.miss: got {cfg.pool.miss} with experts in {cfg.dtype}; expected quantised ones, which rgpu's kernels "
            "compute; set quantize=bf16, say, or pool.miss=fetch"
        )
    lossy = lossy_of(cfg, architecture, quantize)
    if lossy is not None:
        options["lossy"] = lossy
    if quantised or (lossy is not None and lossy.low is not None):
        options["kernel"] = _kernel(cfg.device)
    return Stored(own if quantize is None else cfg.quantize, quantised, options)


def layout_of(folder: Path, architecture: Architecture, made: Stored) -> ExpertLayout | SlotLayout:
    """How one expert will lie in a slot: known before there is a store."""
    size = architecture.intermediate, architecture.hidden
    quantize = made.options["quantize"]
    if not made.quantised:
        return ExpertLayout(*size, made.options["dtype"], architecture.bias)
    if quantize is not None:
        return SlotLayout(*size, quantize, architecture.bias)
    with open_experts(folder) as reader:
        return reader.layout


def _quantizer(cfg: DictConfig, architecture: Architecture) -> Any:
    if cfg.group is not None and cfg.quantize not in GROUPED:
        raise InputError(
            f"group: got {cfg.group} with quantize={'null' if cfg.quantize is None else cfg.quantize}; expected it with "
            f"{' or '.join(GROUPED)}; leave group out"
        )
    if cfg.quantize is None:
        return None
    if cfg.quantize not in ROUNDED:
        raise InputError(
            f"quantize: got {cfg.quantize!r}; expected null or one of {', '.join(ROUNDED)}; set quantize=int8"
        )
    if architecture.quantised is not None:
        kind = architecture.quantised.get("quant_method", "unnamed")
        raise InputError(
            f"quantize: got {cfg.quantize} for a checkpoint that is quantised already ({kind}); expected float weights; leave "
            "quantize out: it runs as it is"
        )
    if architecture.gate is None:
        raise InputError(
            f"quantize: got {cfg.quantize} for {architecture.experts_class.__name__}, whose activation no kernel has; expected "
            "SiLU, GELU (tanh) or gpt-oss's; leave quantize out"
        )
    rounding = by_name(cfg.quantize, **({} if cfg.group is None else {"group": cfg.group}))
    _ = SlotLayout(architecture.intermediate, architecture.hidden, rounding, architecture.bias).sections  # may not fit
    return rounding


def _check_places(cfg: DictConfig) -> None:
    """Refuses a store, a number of experts in RAM, a miss handler or a device that is not there or not with the others."""
    if cfg.device not in DEVICES:
        raise InputError(f"device: got {cfg.device!r}; expected one of {', '.join(DEVICES)}; set device=cpu")
    if cfg.store not in KINDS:
        raise InputError(
            f"store: got {cfg.store!r}; expected {', '.join(KINDS[:-1])} or {KINDS[-1]}; set store={KINDS[0]}"
        )
    held = cfg.ram_experts
    if type(held) is not int or held < 0 or (cfg.store != TIER and held) or (cfg.store == TIER and not held):
        many = "a number above 0 with store=tier" if cfg.store == TIER else f"0 with store={cfg.store}"
        raise InputError(f"ram_experts: got {held!r}; expected {many}; set store=tier ram_experts=64, say")
    handlers = HANDLERS if cfg.device == "cpu" else GPU_HANDLERS
    if cfg.pool.miss not in handlers:
        raise InputError(
            f"pool.miss: got {cfg.pool.miss!r} with device={cfg.device}; expected one of {', '.join(handlers)}; set "
            "pool.miss=fetch"
        )
    if cfg.fused and cfg.device == "cpu":
        raise InputError("fused: got true with device=cpu; expected device=cuda; set fused=false")
    if cfg.pool.miss == ZERO_COPY and cfg.memory.vram is None and cfg.store != RAM:
        raise InputError(
            f"pool.miss: got zero_copy with store={cfg.store}; expected store=ram, every expert in memory that the GPU reads; "
            "set store=ram, or pool.miss=fetch"
        )
    if cfg.pool.miss in ON_THE_HOST and cfg.store in (DIRECT, TIER):
        raise InputError(
            f"pool.miss: got {cfg.pool.miss} with store={cfg.store}, which does not hold every expert where it "
            "could be computed; expected store=disk or store=ram; set store=disk, or pool.miss=fetch"
        )


def _kernel(device: str) -> Any:
    """The kernels come in here only: they bring a compiler along."""
    if device == "cuda":
        from rgpu.kernels import compute_triton

        return compute_triton.on_gpu
    from rgpu.kernels.compute_cpu import CpuCompute

    return CpuCompute
