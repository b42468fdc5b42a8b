"""One pool, one number of rows, every provider: checked against plain torch first, then timed; result rows as dicts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from rgpu.errors import InputError
from rgpu.experiments.benching.cases import Pool, Routed, calls
from rgpu.experiments.benching.providers import Call, Family, Unsuitable
from rgpu.experiments.benching.roofline import Roof
from rgpu.experiments.benching.timing import Clock, samples
from rgpu.kernels.compute_torch import TorchCompute

TOLERANCE = 2e-2  # relative error of a token's output: activations and plain weights are bfloat16
CHECKED = 2  # tokens of a call that the oracle computes
ROTATIONS = 8  # calls with different experts
DECODE_ROWS = 16  # up to here a call counts as decode
COLUMNS = (
    "kernel", "provider", "model", "format", "rows", "us_p50", "us_p20", "us_p80", "bytes", "gb_per_s", "roofline_share",
    "roofline_basis", "error", "samples", "timing", "threads", "slots", "experts_read", "device", "torch", "triton",
    "seed", "config_hash", "commit", "versions", "hardware", "date",
)  # fmt: skip


@dataclass
class Measured:
    """Rows, reasons of what was left out (`model format rows provider` -> reason), and what is wrong in rgpu itself."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """What all measurements of a run share. `seconds`: the longest that one of them may take, checks aside."""

    device: torch.device
    clock: Clock
    threads: int
    roof: Roof
    repeats: int
    seconds: float
    seed: int
    facts: dict[str, Any]


def made(pool: Pool, family: Family, setting: Setting, names: Sequence[str] | None, out: Measured) -> dict[str, Call]:
    """The family's calls over the pool; what cannot run is noted in `out.skipped`."""
    try:
        found = family.make(pool, setting.threads)
    except (Unsuitable, InputError, RuntimeError, ImportError) as error:
        out.skipped[f"{pool.model} {pool.format} {family.names[0]}"] = one_line(error)
        return {}
    return {name: call for name, call in found.items() if names is None or name in names}


def measure(pool: Pool, rows: int, providers: list[tuple[Family, str, Call]], setting: Setting, out: Measured) -> None:
    """Adds a row for every provider that agrees with the oracle; others are noted in `out`."""
    rounds = list(calls(pool, rows, ROTATIONS, setting.seed + rows, setting.device))
    wanted = oracle(pool, rounds[0])
    for family, name, call in providers:
        what = f"{pool.model} {pool.format} rows={rows} {name}"
        if rows > family.most_rows:
            continue
        try:
            error = error_of(call(rounds[0]), wanted)
            if not error < TOLERANCE:
                out.skipped[what] = f"differs from plain torch by {error:.3g}; expected less than {TOLERANCE}"
                out.failed += [what] if family.ours else []
                continue
            each = [partial(call, r) for r in rounds]
            if family.ours:  # compiled at first use, for each number of rows that an expert gets
                for once in each:
                    once()
            took, timing = samples(each, setting.device, setting.clock, setting.repeats, setting.seconds, family.graph)
        except Unsuitable as unsuitable:
            out.skipped[what] = one_line(unsuitable)
            continue
        except Exception as broken:  # one that does not compile or run must not lose the rows of the others
            if setting.device.type == "cuda":
                torch.cuda.synchronize()  # a GPU that no longer answers raises here: nothing more can be measured
            out.skipped[what] = one_line(broken)
            out.failed += [what] if family.ours else []
            continue
        out.rows.append(row(pool, name, rounds, took, timing, error, setting))


def row(
    pool: Pool, name: str, rounds: list[Routed], took: list[float], timing: str, error: float, setting: Setting
) -> dict[str, Any]:
    """A result row. `bytes`: what the experts that a call reads take as stored, the mean over its calls."""
    quick, middle, slow = (
        float(q) for q in torch.tensor(took).double().quantile(torch.tensor([0.2, 0.5, 0.8]).double())
    )
    rows = len(rounds[0].x_TD)
    experts = sum(r.distinct for r in rounds) / len(rounds)
    nbytes = experts * pool.layout.payload_bytes
    operations = 6.0 * rows * pool.top_k * pool.layout.intermediate * pool.layout.hidden
    return {
        "kernel": "decode" if rows <= DECODE_ROWS else "prefill", "provider": name, "model": pool.model,
        "format": pool.format, "rows": rows,
        "us_p50": round(1e6 * middle, 3), "us_p20": round(1e6 * quick, 3), "us_p80": round(1e6 * slow, 3),
        "bytes": round(nbytes), "gb_per_s": float(f"{nbytes / middle / 1e9:.4g}"),
        "roofline_share": float(f"{setting.roof.seconds(nbytes, operations) / middle:.4g}"),
        "roofline_basis": setting.roof.basis(nbytes, operations),
        "error": float(f"{error:.3g}"), "samples": len(took), "timing": timing, "threads": setting.threads,
        "slots": len(pool.slots_SB), "experts_read": experts, **setting.facts,
    }  # fmt: skip


def oracle(pool: Pool, r: Routed) -> torch.Tensor:
    """float32 [N, D] on the CPU: the first and last tokens of a call by `TorchCompute`."""
    tokens = _checked(len(r.x_TD))
    slot_NK, used = r.slot_TK[tokens].cpu(), r.slot_TK[tokens].unique()
    raw = torch.empty(len(used) * pool.layout.stride + 128, dtype=torch.uint8)
    start = -raw.data_ptr() % 128
    slots = raw[start : start + len(used) * pool.layout.stride].view(len(used), -1)
    slots.copy_(pool.slots_SB[used.long()])
    place = torch.searchsorted(used.cpu(), slot_NK).int()
    return TorchCompute(pool.layout, pool.gate)(r.x_TD[tokens].float().cpu(), slots, place, r.weight_TK[tokens].cpu())


def error_of(out_TD: torch.Tensor, want_ND: torch.Tensor) -> float:
    """The largest ||out - ref|| / ||ref|| of the tokens that the oracle computed; NaN where some output is NaN."""
    got_ND = out_TD[_checked(len(out_TD))].float().cpu()
    error = float(((got_ND - want_ND).norm(dim=1) / want_ND.norm(dim=1)).max())
    return error if bool(torch.isfinite(out_TD).all()) else float("nan")


def _checked(tokens: int) -> list[int]:
    return sorted({0, tokens - 1})[:CHECKED]


def one_line(error: BaseException) -> str:
    """The first line of a message, shortened."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def plan(models: Sequence[str], formats: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(model, format), format by format: what a budget cuts off is then the last formats and not the last models."""
    yield from ((model, fmt) for fmt in formats for model in models)
