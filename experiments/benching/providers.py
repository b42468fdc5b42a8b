"""Ways to compute a pool's experts: rgpu's own, and what people use instead. One that cannot run here says why.

Legend: T tokens, D hidden size, I expert width, K top-k, S slots.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from rgpu.errors import InputError
from rgpu.experiments.benching.cases import Pool, Routed, free_bytes
from rgpu.quant.gates import apply_gate
from rgpu.quant.layout import DenseExpert

Call = Callable[[Routed], torch.Tensor]  # -> [T, D]
DECODE_ROWS = 64  # decode computes every pair by itself: past this it is not worth the time to measure


class Unsuitable(Exception):
    """Why a provider cannot compute a pool on this machine."""


@dataclass(frozen=True)
class Family:
    """Providers made together: `make(pool, threads)` -> a call for each that runs here, or `Unsuitable`.

    `devices` they exist for; `graph`: whether a CUDA graph can capture them; `most_rows` worth measuring."""

    names: tuple[str, ...]
    make: Callable[[Pool, int], dict[str, Call]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    graph: bool = False
    most_rows: int = 1 << 30
    ours: bool = False


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Unsuitable(f"{package} is not installed")


def _needs_format(pool: Pool, *names: str) -> None:
    if pool.layout.format.name not in names:
        raise Unsuitable(f"computes {' and '.join(names)} only")


def _needs_bytes(pool: Pool, nbytes: int) -> None:
    free = free_bytes(pool.slots_SB.device)
    if nbytes > free // 2:
        raise Unsuitable(f"copies {nbytes >> 20} MiB of weights in a call; {free >> 20} MiB are free")


def _cpu(pool: Pool, threads: int) -> dict[str, Call]:
    _needs("llvmlite")
    from rgpu.kernels.compute_cpu import CpuCompute

    compute = CpuCompute(pool.layout, pool.gate, threads)
    return {"rgpu_cpu": lambda r: compute(r.x_TD, pool.slots_SB, r.slot_TK, r.weight_TK)}


def _decode(pool: Pool, threads: int) -> dict[str, Call]:
    from rgpu.kernels.decode import has_fast, moe_decode
    from rgpu.kernels.stored import stored

    def with_(fast: bool) -> Call:
        return lambda r: moe_decode(
            pool.layout, pool.gate, r.x_TD, pool.slots_SB, r.slot_TK, r.weight_TK, fast=fast
        )  # fmt: skip

    faster = any(has_fast(stored(pool.layout, matrix)) for matrix in ("gate_up", "down"))
    return {"rgpu_decode": with_(False), **({"rgpu_decode_fast": with_(True)} if faster else {})}


def _prefill(pool: Pool, threads: int) -> dict[str, Call]:
    from rgpu.kernels.prefill import moe_prefill

    return {
        "rgpu_prefill": lambda r: moe_prefill(pool.layout, pool.gate, r.x_TD, pool.slots_SB, r.slot_TK, r.weight_TK)
    }


def _by_expert(pool: Pool, forward: Callable[[int, torch.Tensor], torch.Tensor]) -> Call:
    """A call that goes from expert to expert: `forward(slot, x_ND)` -> [N, D]."""

    def call(r: Routed) -> torch.Tensor:
        out_TD = torch.zeros(r.x_TD.shape, dtype=torch.float32, device=r.x_TD.device)
        for slot in r.slot_TK.unique().tolist():
            token_N, rank_N = (r.slot_TK == slot).nonzero(as_tuple=True)
            out_TD.index_add_(0, token_N, forward(slot, r.x_TD[token_N]).float() * r.weight_TK[token_N, rank_N, None])
        return out_TD.to(r.x_TD.dtype)

    return call


def _dequantise(pool: Pool, threads: int) -> dict[str, Call]:
    """Every call turns the experts it needs into plain weights and multiplies by them: bfloat16 on a GPU, float32 on a
    CPU."""
    dtype = torch.bfloat16 if pool.slots_SB.device.type == "cuda" else torch.float32

    def forward(slot: int, x_ND: torch.Tensor) -> torch.Tensor:
        e: DenseExpert = pool.layout.unpack(pool.slots_SB[slot])
        x = x_ND.to(dtype)
        biases = [None if b is None else b.to(dtype) for b in (e.gate_bias, e.up_bias, e.down_bias)]
        h = apply_gate(pool.gate, linear(x, e.gate.to(dtype), biases[0]), linear(x, e.up.to(dtype), biases[1]))
        return linear(h, e.down.to(dtype), biases[2])

    return {"dequantise_matmul": _by_expert(pool, forward)}


def _bitsandbytes(pool: Pool, threads: int) -> dict[str, Call]:
    """bitsandbytes' 4-bit product on the same indices and scales, packed its way outside of the timing."""
    _needs("bitsandbytes")
    _needs_format(pool, "nf4")
    import bitsandbytes.functional as bnb
    from bitsandbytes import matmul_4bit

    from rgpu.quant.nf4 import NF4, Nf4

    packed = {}
    levels = torch.tensor(NF4, device=pool.slots_SB.device)
    for slot, row in enumerate(pool.slots_SB):
        views = pool.layout.views(row)
        for matrix, rows, cols in pool.layout.matrices:
            parts = {name: views[f"{matrix}.{name}"] for name in ("q", "scale")}
            codes = Nf4().codes(parts).reshape(-1, 2)
            state = bnb.QuantState(
                absmax=parts["scale"].flatten(), shape=torch.Size((rows, cols)), code=levels, blocksize=64,
                quant_type="nf4", dtype=torch.bfloat16,
            )  # fmt: skip
            packed[slot, matrix] = (codes[:, :1] << 4 | codes[:, 1:]).contiguous(), state

    def forward(slot: int, x_ND: torch.Tensor) -> torch.Tensor:
        views = pool.layout.views(pool.slots_SB[slot])
        bias = [views[f"{m}.bias"].bfloat16() if pool.layout.bias else None for m in ("gate_up", "down")]
        weight, state = packed[slot, "gate_up"]
        both = matmul_4bit(x_ND, weight.t(), quant_state=state, bias=bias[0])
        weight, state = packed[slot, "down"]
        h = apply_gate(pool.gate, both[:, 0::2], both[:, 1::2]).contiguous()
        y: torch.Tensor = matmul_4bit(h, weight.t(), quant_state=state, bias=bias[1])
        return y

    return {"bitsandbytes_nf4": _by_expert(pool, forward)}


def _transformers(pool: Pool, threads: int) -> dict[str, Call]:
    """The experts of transformers' own models over unquantised weights, by each of its implementations."""
    _needs("transformers")
    _needs_format(pool, "bf16")
    if pool.gate.kind not in ("silu", "gpt_oss") or (pool.gate.kind == "silu" and pool.gate.limit):
        raise Unsuitable(f"has no experts with the gate {pool.gate.kind}, limit {pool.gate.limit}")
    module: Any = _gpt_oss(pool) if pool.gate.kind == "gpt_oss" else _qwen3(pool)

    def by(name: str) -> Call:
        def call(r: Routed) -> torch.Tensor:
            if name == "batched_mm":  # copies the weights of every pair
                _needs_bytes(pool, r.slot_TK.numel() * 6 * pool.layout.intermediate * pool.layout.hidden)
            module.config._experts_implementation = name
            with torch.no_grad():
                out: torch.Tensor = module(r.x_TD, r.expert_TK, r.plain_TK)
            return out

        return call

    return {f"transformers_{name}": by(name) for name in ("eager", "batched_mm", "grouped_mm")}


def _weights(pool: Pool) -> dict[str, torch.Tensor]:
    """The sections of all slots as [S, rows, columns] views; rows of gate and up interleaved."""
    found = {}
    for name, section in pool.layout.sections.items():
        raw = pool.slots_SB[:, section.offset : section.offset + section.part.nbytes]
        found[name] = raw.view(section.part.dtype).view(len(raw), *section.part.shape)
    return found


def _qwen3(pool: Pool) -> torch.nn.Module:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=pool.layout.hidden, moe_intermediate_size=pool.layout.intermediate, num_experts=len(pool.slots_SB),
        hidden_act="silu",
    )  # fmt: skip
    w = _weights(pool)
    gate_up = torch.cat([w["gate_up.q"][:, 0::2], w["gate_up.q"][:, 1::2]], 1)
    return _module(Qwen3MoeExperts, config, gate_up_proj=gate_up, down_proj=w["down.q"].contiguous())


def _gpt_oss(pool: Pool) -> torch.nn.Module:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = GptOssConfig(
        hidden_size=pool.layout.hidden, intermediate_size=pool.layout.intermediate,
        num_local_experts=len(pool.slots_SB), swiglu_alpha=pool.gate.alpha, swiglu_limit=pool.gate.limit,
    )  # fmt: skip
    w = _weights(pool)
    return _module(
        GptOssExperts, config,
        gate_up_proj=w["gate_up.q"].transpose(1, 2).contiguous(), gate_up_proj_bias=w["gate_up.bias"].bfloat16(),
        down_proj=w["down.q"].transpose(1, 2).contiguous(), down_proj_bias=w["down.bias"].bfloat16(),
    )  # fmt: skip


def _module(cls: Callable[..., torch.nn.Module], config: object, **weights: torch.Tensor) -> torch.nn.Module:
    with torch.device("meta"):
        module = cls(config)
    for name, weight in weights.items():
        setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
    return module


FAMILIES = (
    Family(("rgpu_cpu",), _cpu, ("cpu",), ours=True),
    Family(("rgpu_decode", "rgpu_decode_fast"), _decode, ("cuda",), graph=True, most_rows=DECODE_ROWS, ours=True),
    Family(("rgpu_prefill",), _prefill, ("cuda",), graph=True, ours=True),
    Family(("dequantise_matmul",), _dequantise),
    Family(("bitsandbytes_nf4",), _bitsandbytes),
    Family(("transformers_eager", "transformers_batched_mm", "transformers_grouped_mm"), _transformers),
)
NAMES = tuple(name for family in FAMILIES for name in family.names)
UNADAPTED = ("freetoken", "gemlite", "hqq", "torchao")  # packages of others' kernels that no provider here calls


def families(names: Sequence[str] | None, device: torch.device) -> list[Family]:
    """The families that exist for the device and hold one of `names` (None: all). `InputError` for an unknown name or
    one that does not exist for the device."""
    here = [family for family in FAMILIES if device.type in family.devices]
    known = [name for family in here for name in family.names]
    if unknown := [name for name in names or () if name not in known]:
        raise InputError(
            f"providers: got {unknown[0]!r} on {device.type}; expected some of {', '.join(known)}; leave it out for all"
        )
    return [family for family in here if names is None or set(names) & set(family.names)]


def absent() -> dict[str, str]:
    """Packages that were looked for and play no part, and why."""
    found = {name: importlib.util.find_spec(name) is not None for name in UNADAPTED}
    return {name: "installed, but nothing here calls it" if there else "not installed" for name, there in found.items()}
