"""Every kernel on the device at hand against plain torch on the CPU, twice each: right, and the same bits again.

Legend: T tokens, D hidden size, K top-k, S slots.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from rgpu.experiments.benching.cases import FORMATS, fill, model_of
from rgpu.kernels import gather, lookahead, resolve, route, sort_pairs, topk
from rgpu.kernels.compute_torch import dense_forward
from rgpu.kernels.decode import has_fast, moe_decode
from rgpu.kernels.device_forecast import DeviceForecast
from rgpu.kernels.prefill import moe_prefill
from rgpu.kernels.shapes import FAMILIES
from rgpu.kernels.stored import stored
from rgpu.quant.layout import DenseExpert, SlotLayout
from rgpu.types import Gate

COLUMNS = ("kernel", "format", "shape", "gate", "rows", "dtype", "error", "tolerance", "right", "repeats", "note")
KERNELS = ("decode", "decode_fast", "prefill")
GATES = {
    "silu": Gate(), "gelu_tanh": Gate("gelu_tanh"), "gpt_oss": Gate("gpt_oss", limit=1.5), "clamped": Gate(limit=1.0),
}  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCE = {"bf16": 1.6e-2, "fp16": 3e-3, "fp32": 1e-5}  # ||out - ref|| / ||ref||; prefill rounds h to the dtype of x
LOOKAHEAD = 1e-4  # of chances: the exponentials of a GPU times what a mean and a division add; logits are exact
HALVES = 3e-3  # decode_fast rounds activations and sums of four products to 11 bits (kernels/halfword.py)
REAL, OSS = "Qwen3-30B-A3B", "gpt-oss-20b"
ROWS = (1, 3, 16, 64)
SLOTS = 8


@dataclass(frozen=True)
class Case:
    """One kernel and what it is given. `shape`: small, or the name of a model."""

    kernel: str
    format: str
    shape: str
    gate: str
    rows: int
    dtype: str

    @property
    def key(self) -> tuple[str, ...]:
        return self.kernel, self.format, self.shape, self.gate, str(self.rows), self.dtype


def cases(formats: tuple[str, ...] = (), rows: tuple[int, ...] = ROWS, real: bool = True) -> Iterator[Case]:
    """What matters most first: all formats as models use them, then small shapes, other dtypes, other gates."""
    names = [name for name, _ in FAMILIES if not formats or name in formats]
    stages = [[(REAL, "silu", "bf16")]] if real else []
    stages += [[("small", "silu", "bf16")]]
    stages += [[("small", "silu", dtype)] for dtype in ("fp16", "fp32")]
    stages += [[("small", gate, "bf16")] for gate in GATES if gate != "silu"]
    if real and "mxfp4" in names:
        for kernel in KERNELS:
            yield from (Case(kernel, "mxfp4", OSS, "gpt_oss", count, "bf16") for count in rows)
    for stage in stages:
        for name in names:
            for shape, gate, dtype in stage:
                for kernel in KERNELS:
                    for count in rows:
                        case = Case(kernel, name, shape, gate, count, dtype)
                        if kernel != "decode_fast" or _fast(case):
                            yield case


def _fast(case: Case) -> bool:
    layout = layout_of(case.format, case.shape, case.gate)
    return any(has_fast(stored(layout, matrix)) for matrix in ("gate_up", "down"))


@cache
def layout_of(fmt: str, shape: str, gate: str) -> SlotLayout:
    """Small: three groups of columns by one, which no tile divides, with biases where the gate is gpt_oss's."""
    form = FORMATS[fmt]
    if shape != "small":
        return model_of(shape).layout(form)
    step = 256 if form.name in ("q4_k", "q6_k") else max(32, form.group)
    return SlotLayout(step, (1 if step == 256 else 3) * step, form, bias=gate == "gpt_oss")


@cache
def _experts(fmt: str, shape: str, bias: bool) -> tuple[torch.Tensor, list[DenseExpert]]:
    """Slots on the CPU, and what is in them."""
    layout = layout_of(fmt, shape, "gpt_oss" if bias else "silu")
    raw = torch.empty(SLOTS * layout.stride + 128, dtype=torch.uint8)
    start = -raw.data_ptr() % 128
    slots_SB = raw[start : start + SLOTS * layout.stride].view(SLOTS, -1)
    fill(layout, slots_SB, torch.Generator().manual_seed(zlib.crc32(fmt.encode())))
    return slots_SB, [layout.unpack(row) for row in slots_SB]


def check(case: Case, device: torch.device) -> dict[str, Any]:
    """A row for the table: how far from plain torch, and whether a second run gave the same bits."""
    layout, gate = layout_of(case.format, case.shape, case.gate), GATES[case.gate]
    if case.shape == OSS:
        gate = model_of(OSS).gate
    slots_SB, dense = _experts(case.format, case.shape, layout.bias)
    make = torch.Generator().manual_seed(zlib.crc32(" ".join(case.key).encode()))
    top_k = 2 if case.shape == "small" else model_of(case.shape).top_k
    slot_TK = torch.rand(case.rows, SLOTS + 1, generator=make).topk(top_k, 1).indices.int() - 1  # -1: not resident
    weight_TK = torch.rand(case.rows, top_k, generator=make) + 0.1
    x_TD = torch.randn(case.rows, layout.hidden, generator=make).to(DTYPES[case.dtype])
    want_TD = reference(dense, gate, x_TD, slot_TK, weight_TK)
    arguments = [tensor.to(device) for tensor in (x_TD, _aligned(slots_SB, device), slot_TK, weight_TK)]

    def run() -> torch.Tensor:
        with poisoned():
            if case.kernel == "prefill":
                return moe_prefill(layout, gate, *arguments)
            return moe_decode(layout, gate, *arguments, fast=case.kernel == "decode_fast")

    first, again = run(), run()
    got_TD, tolerance = first.float().cpu(), TOLERANCE[case.dtype]
    if case.kernel == "decode_fast":
        tolerance = max(tolerance, HALVES)
    error = float((got_TD - want_TD).norm() / want_TD.norm())
    return {
        **dict(zip(COLUMNS, case.key, strict=False)), "error": f"{error:.3g}", "tolerance": tolerance,
        "right": error < tolerance, "repeats": torch.equal(first, again),
    }  # fmt: skip


def reference(
    dense: list[DenseExpert], gate: Gate, x_TD: torch.Tensor, slot_TK: torch.Tensor, weight_TK: torch.Tensor
) -> torch.Tensor:
    """float32 [T, D]: what `TorchCompute` computes, from experts already unpacked."""
    out_TD = torch.zeros(x_TD.shape)
    for slot, expert in enumerate(dense):
        token_N, rank_N = (slot_TK == slot).nonzero(as_tuple=True)
        out_TD.index_add_(0, token_N, dense_forward(expert, gate, x_TD[token_N]) * weight_TK[token_N, rank_N, None])
    return out_TD


def _aligned(slots_SB: torch.Tensor, device: torch.device) -> torch.Tensor:
    return slots_SB if device.type == "cpu" else slots_SB.to(device)


class poisoned:
    """Within it `torch.empty` is full of NaN, or of the largest integer, which shows what a kernel did not write."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)


def small_kernels(device: torch.device) -> Iterator[dict[str, Any]]:
    """Rows of topk, sort_pairs, resolve, route, gather, lookahead and `DeviceForecast` over their own cases; exact, weights
    of topk and chances of lookahead within their tolerances."""
    ahead = (*lookahead.CASES, *(lookahead.REAL if device.type == "cuda" else ()))
    jobs: list[tuple[str, Any, Callable[[Any, torch.device], tuple[float, bool]]]] = [
        *(("topk", case, _topk) for case in topk.CASES),
        *(("sort_pairs", case, _sort_pairs) for case in sort_pairs.CASES),
        *(("resolve", case, _resolve) for case in resolve.CASES),
        *(("route", case, _route) for case in route.CASES),
        *(("gather", case, _gather) for case in gather.CASES),
        *(("lookahead", case, _lookahead) for case in ahead),
        *(("device_forecast", case, _device_forecast) for case in ahead if case.activation == "none"),
    ]
    for name, case, job in jobs:
        about = {"kernel": name, "shape": str(case), "rows": getattr(case, "tokens", "")}
        tolerance = {"topk": topk.RTOL, "lookahead": LOOKAHEAD}.get(name, 0.0)
        try:
            error, again = job(case, device)
        except Exception as failure:  # one that does not compile or run must not hide the others
            yield {**about, "right": False, "repeats": False, "note": _shortened(failure)}
            continue
        yield {
            **about, "error": f"{error:.3g}", "tolerance": tolerance, "right": error <= tolerance, "repeats": again,
        }  # fmt: skip


def _compare(got: list[torch.Tensor], again: list[torch.Tensor], want: list[torch.Tensor]) -> tuple[float, bool]:
    """(0 where equal, else the largest relative difference; whether a second run gave the same)."""
    error = 0.0
    for g, w in zip(got, want, strict=True):
        if not torch.equal(g.cpu(), w):
            difference = (g.cpu().double() - w.double()).abs() / w.double().abs().clamp_min(1e-2)
            error = max(error, float(difference.max()) if g.is_floating_point() else float("inf"))
    return error, all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def _run(call: Callable[[], Any], names: tuple[str, ...] = ()) -> list[torch.Tensor]:
    with poisoned():
        found = call()
    return [getattr(found, name) for name in names] if names else list(found)


def _topk(case: topk.Case, device: torch.device) -> tuple[float, bool]:
    logits = (torch.randn(case.tokens, case.experts, generator=_seeded(case)) * 3).to(case.dtype)
    options = (case.top_k, case.scoring, case.renormalise)
    there = logits.to(device)
    got, again = (_run(lambda: topk.topk(there, *options)) for _ in range(2))
    return _compare(got, again, list(topk.topk_ref(logits, *options)))


def _sort_pairs(case: sort_pairs.Case, device: torch.device) -> tuple[float, bool]:
    make = _seeded(case)
    used = torch.randperm(case.slots, generator=make)[: case.used]
    slot_TK = used[torch.randint(0, case.used, (case.tokens, case.top_k), generator=make)]
    slot_TK = torch.where(torch.rand(slot_TK.shape, generator=make) < case.absent, -1, slot_TK).int()
    there, names = slot_TK.to(device), ("pair_P", "block_slot", "block_first", "block_rows")
    got, again = (_run(lambda: sort_pairs.sort_pairs(there, case.slots, case.block), names) for _ in range(2))
    want = sort_pairs.sort_pairs_ref(slot_TK, case.slots, case.block)
    return _compare(got, again, [getattr(want, name) for name in names])


def _resolve(case: resolve.Case, device: torch.device) -> tuple[float, bool]:
    make = _seeded(case)
    expert_TK = torch.randint(0, case.experts, (case.tokens, case.top_k), generator=make).int()
    gone = torch.rand(case.experts, generator=make) < case.absent
    lookup_E = torch.where(gone, -1, torch.randperm(case.experts, generator=make) + 5).int()
    there, names = (expert_TK.to(device), lookup_E.to(device)), ("slot_TK", "missing_P", "count")
    got, again = (_run(lambda: resolve.resolve(*there), names) for _ in range(2))
    want = resolve.resolve_ref(expert_TK, lookup_E)
    return _compare(got, again, [getattr(want, name) for name in names])


def _route(case: route.Case, device: torch.device) -> tuple[float, bool]:
    experts, weights, table = route.made(case, _seeded(case))

    def once() -> list[torch.Tensor]:
        word_P = torch.full((case.tokens * case.top_k,), -1, pin_memory=device.type == "cuda")
        got = _run(lambda: route.route(experts.to(device), weights.to(device), table.to(device), word_P))
        if device.type == "cuda":  # the words are on the host, where nothing waits for the device
            torch.cuda.synchronize()
        return [*got, word_P]

    want_P = torch.empty(case.tokens * case.top_k, dtype=torch.int64)
    want = [*route.route_ref(experts, weights, table, want_P), want_P]
    return _compare(once(), once(), want)


def _gather(case: gather.Case, device: torch.device) -> tuple[float, bool]:
    make = _seeded(case)
    source, slots = (
        torch.randint(0, 256, (n, case.stride), generator=make).to(torch.uint8) for n in (case.experts, case.slots)
    )
    from_N = torch.randint(0, case.experts, (case.rows,), generator=make).int()
    to_N = torch.randperm(max(case.slots, case.rows), generator=make)[: case.rows].int()  # some do not exist
    count = torch.tensor([case.count], dtype=torch.int32)
    source = source.pin_memory() if device.type == "cuda" else source

    def once() -> list[torch.Tensor]:
        there = slots.to(device).clone()
        gather.gather(source, there, from_N.to(device), to_N.to(device), count.to(device))
        return [there]

    want = slots.clone()
    gather.gather_ref(source, want, from_N, to_N, count)
    return _compare(once(), once(), [want])


def _lookahead(case: lookahead.Case, device: torch.device) -> tuple[float, bool]:
    """Experts are compared with the ranks of the chances that came with them: those of others may differ in the last bit."""
    arguments = lookahead.made(case, _seeded(case))
    options = (case.experts, case.top_k, case.activation, case.width)
    there = [tensor.to(device) for tensor in arguments]
    count_H = torch.zeros(case.horizons, dtype=torch.int32, device=device)
    given: Any = (*there, *options, count_H)
    plain: Any = (*arguments, *options)
    got, again = (_run(lambda: lookahead.lookahead(*given)) for _ in range(2))
    want = lookahead.lookahead_ref(*plain)
    ranks_HW = got[1].cpu().sort(dim=-1, descending=True, stable=True).indices[:, : case.width].int()
    error, repeats = _compare(got, again, [want.logits_NHE, want.probs_HE, ranks_HW])
    exact = torch.equal(got[0].cpu(), want.logits_NHE) and not count_H.any()
    return (error if exact else float("inf")), repeats


def _device_forecast(case: lookahead.Case, device: torch.device) -> tuple[float, bool]:
    x_ND, weight_DM, bias_M = (tensor.float() for tensor in lookahead.made(case, _seeded(case)))
    want = lookahead.lookahead_ref(x_ND, weight_DM, bias_M, case.experts, case.top_k, "none").logits_NHE
    forecast, host = DeviceForecast(device), (weight_DM.numpy(), bias_M.numpy())
    got, again = ([torch.from_numpy(forecast(x_ND.numpy(), *host))] for _ in range(2))
    return _compare(got, again, [want.flatten(1)])


def _seeded(case: object) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(case).encode()))


def broken(case: Case, error: BaseException) -> dict[str, Any]:
    """The row of a case that did not come to an end."""
    row = dict(zip(COLUMNS, case.key, strict=False))
    return {**row, "right": False, "repeats": False, "note": _shortened(error)}


def _shortened(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
