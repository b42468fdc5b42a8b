"""`CpuCompute` against `TorchCompute`, in every format; and that nothing but the numbers decides what it returns."""

import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from rgpu.errors import InputError
from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.kernels.compute_torch import TorchCompute
from rgpu.quant.format import QuantFormat
from rgpu.quant.formats import FORMATS
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from rgpu.quant.layout import SlotLayout
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.quant.nf4 import Nf4
from rgpu.quant.q4_k import Q4K
from rgpu.quant.q6_k import Q6K
from rgpu.types import Gate
from tests.experts import filled_slots, routing

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
GATES = (Gate(), Gate("gelu_tanh"), Gate("gpt_oss", limit=7.0), Gate("silu", limit=1.0))
TOLERANCE = {
    FULL: 4e-6,
    HALF: 2**-10,
    BRAIN: 2**-7,
}  # of the largest output: float32 sums in another order; one last place
VARIANTS: tuple[QuantFormat, ...] = (
    *(
        Int4(32, scale_dtype=BRAIN),
        Int4(64, asymmetric=True, scale_dtype=FULL),
        Int4(32, asymmetric=True, act_order=True),
    ),
    *(Int4(128, act_order=True), Int8(32, BRAIN), Int8(128, FULL), Int8(64)),
)
COLUMNS = {"bf16": 8, "int8": 16, "fp8_block": 16, "q4_k": 256, "q6_k": 256}  # smallest width; others: 32 or the group


def odd_layout(fmt: QuantFormat, bias: bool = True) -> SlotLayout:
    """Widths of 3 and 5 (K-quants: 1 and 2) times the smallest; fp8_block crosses a block of 128 rows and columns."""
    unit = max(COLUMNS.get(fmt.name, 32), fmt.group if fmt.name != "fp8_block" else 0)
    few = (1, 2) if unit == 256 else (3, 9) if fmt.name == "fp8_block" else (3, 5)
    return SlotLayout(few[0] * unit, few[1] * unit, fmt, bias)


def name_of(fmt: QuantFormat) -> str:
    return "-".join(
        str(getattr(fmt, key)) for key in ("name", "group", "asymmetric", "scale_dtype") if hasattr(fmt, key)
    )


def check(
    layout: SlotLayout, gate: Gate, slots: torch.Tensor, x: torch.Tensor, slot: torch.Tensor, w: torch.Tensor
) -> None:
    got, wanted = (compute(layout, gate)(x, slots, slot, w) for compute in (CpuCompute, TorchCompute))
    assert got.dtype == x.dtype
    error = (got.float() - wanted.float()).abs().max() / wanted.float().abs().max()
    assert float(error) < TOLERANCE[x.dtype]


@pytest.mark.parametrize("fmt", (*FORMATS, *VARIANTS), ids=name_of)
def test_every_format_gate_and_number_of_rows(fmt: QuantFormat) -> None:
    layout = odd_layout(fmt)
    slots = filled_slots(layout, 3)
    make = torch.Generator().manual_seed(1)
    for rows, gate, dtype in zip((1, 2, 3, 8, 16, 17), GATES * 2, (FULL, BRAIN, HALF) * 2, strict=False):
        x = torch.randn(rows, layout.hidden, generator=make)
        check(layout, gate, slots, x.to(dtype), *routing(rows, 2, (0, 2, -1), seed=rows))
        everyone = torch.zeros(rows, 1, dtype=torch.int32)
        check(layout, gate, slots, x, everyone, torch.rand(rows, 1, generator=make) + 0.5)


@pytest.mark.parametrize("size", (1e-4, 30.0, 3e4))
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: f"{gate.kind}-{gate.limit}")
def test_gates_near_zero_where_they_bend_and_where_exp_would_overflow(gate: Gate, size: float) -> None:
    layout = SlotLayout(96, 64, Mxfp4())
    x = size * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    check(layout, gate, filled_slots(layout, 2), x, *routing(4, 2, (0, 1)))


def test_nan_is_not_hidden() -> None:
    layout = SlotLayout(96, 64, Mxfp4())
    x = torch.ones(2, 64)
    x[0, 5] = float("nan")
    out = CpuCompute(layout, Gate("silu", limit=1.0))(
        x, filled_slots(layout, 1), torch.zeros(2, 1).int(), torch.ones(2, 1)
    )
    assert out[0].isnan().all() and out[1].isfinite().all()


def test_a_layout_without_biases() -> None:
    layout = SlotLayout(96, 160, Int4(32))
    check(layout, Gate(), filled_slots(layout, 2), torch.randn(5, 160), *routing(5, 2, (0, 1)))


def test_another_format_for_down() -> None:
    layout = SlotLayout(256, 512, Q4K(), down_format=Q6K())
    check(layout, Gate(), filled_slots(layout, 2), torch.randn(5, 512), *routing(5, 2, (0, 1)))


@dataclass(frozen=True)
class Case:
    """A layout of odd widths whose h needs padding, and a call for it."""

    layout: SlotLayout
    slots: torch.Tensor
    x: torch.Tensor
    slot: torch.Tensor
    weight: torch.Tensor

    def run(self, threads: int | None = None) -> torch.Tensor:
        return CpuCompute(self.layout, Gate("gelu_tanh"), threads)(self.x, self.slots, self.slot, self.weight)


@pytest.fixture(params=(Int8(), Int4(32, asymmetric=True)), ids=name_of)
def case(request: pytest.FixtureRequest) -> Case:
    layout = SlotLayout(288, 352, request.param, bias=True)
    x = torch.randn(37, 352, generator=torch.Generator().manual_seed(3))
    return Case(layout, filled_slots(layout, 5), x, *routing(37, 3, (0, 1, 2, 3, 4, -1), seed=4))


@pytest.mark.parametrize("threads", (2, 3))
def test_threads_change_no_bit(case: Case, threads: int) -> None:
    assert torch.equal(case.run(), case.run(threads))


def test_torch_threads_change_no_bit(case: Case) -> None:
    before = torch.get_num_threads()
    many = replace(case, x=case.x.repeat(8, 1), slot=case.slot.repeat(8, 1), weight=case.weight.repeat(8, 1))
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(many.run())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_other_tokens_of_the_call_change_no_bit(case: Case) -> None:
    together = case.run()
    for token in range(0, 37, 6):
        one = slice(token, token + 1)
        alone = replace(case, x=case.x[one], slot=case.slot[one], weight=case.weight[one])
        assert torch.equal(together[one], alone.run())


def test_the_slot_of_an_expert_changes_no_bit(case: Case) -> None:
    moved = torch.zeros(7, case.layout.stride + 256, dtype=torch.uint8)  # slots may lie further apart
    place = torch.tensor([6, 0, 3, 5, 1])
    moved[place, : case.layout.stride] = case.slots
    slot = torch.where(case.slot < 0, -1, place[case.slot.long()].int())
    assert torch.equal(case.run(), replace(case, slots=moved, slot=slot).run())


def test_an_expert_chosen_twice_counts_twice(case: Case) -> None:
    twice = replace(case, slot=torch.full((37, 2), 3, dtype=torch.int32), weight=torch.full((37, 2), 0.5))
    once = replace(case, slot=torch.full((37, 1), 3, dtype=torch.int32), weight=torch.ones(37, 1))
    assert torch.equal(twice.run(), once.run())


def test_nothing_to_compute(case: Case) -> None:
    absent = replace(case, slot=torch.full_like(case.slot, -1))
    assert torch.equal(absent.run(), torch.zeros(37, 352))
    for tokens, top_k in ((0, 3), (37, 0)):
        empty = replace(case, x=case.x[:tokens], slot=case.slot[:tokens, :top_k], weight=case.weight[:tokens, :top_k])
        assert torch.equal(empty.run(), torch.zeros(tokens, 352))


def test_mistakes_are_told(case: Case) -> None:
    with pytest.raises(InputError, match="threads=0"):
        CpuCompute(case.layout, Gate(), 0)
    with pytest.raises(InputError, match="on meta"):
        replace(case, x=case.x.to("meta")).run()
    with pytest.raises(InputError, match="slots -1 to 5"):
        replace(case, slot=case.slot + (case.slot == 4).int()).run()
    with pytest.raises(InputError, match="'ternary'"):
        CpuCompute(replace(case.layout, format=Int8(name="ternary")), Gate())


def test_it_does_not_need_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import rgpu.kernels.compute_cpu"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("default", (torch.float64, torch.bfloat16))
def test_torch_defaults_change_nothing(default: torch.dtype) -> None:
    layout = SlotLayout(64, 64, Nf4())
    slots = filled_slots(layout, 2)
    slot_TK, weight_TK = routing(3, 2, [0, 1], 1)
    x_TD = torch.randn(3, 64)
    want, dense = CpuCompute(layout, Gate())(x_TD, slots, slot_TK, weight_TK), layout.unpack(slots[0]).gate
    torch.set_default_dtype(default)
    try:
        got, again = (
            CpuCompute(layout, Gate(), threads=2)(x_TD, slots, slot_TK, weight_TK),
            layout.unpack(slots[0]).gate,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, want)
    assert torch.equal(again, dense)
