"""Decode and prefill kernels against plain torch in float32, under the interpreter: a covering set of everything at once.

Each factor's every pair of values occurs in some case (`covering`); the full product runs with `-m slow`.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.kernels.compute_torch import TorchCompute
from rgpu.kernels.compute_triton import TritonCompute
from rgpu.kernels.decode import moe_decode, moe_decode_ref, tile_of
from rgpu.kernels.halfword import nibble_dot_ref
from rgpu.kernels.prefill import moe_prefill, moe_prefill_ref
from rgpu.kernels.stored import stored
from rgpu.quant.bf16 import Bf16
from rgpu.quant.format import QuantFormat
from rgpu.quant.formats import FORMATS
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from rgpu.quant.layout import SlotLayout
from rgpu.types import Gate
from tests.experts import filled_slots, routing
from tests.kernels.poison import poisoned

TOLERANCE = 2e-6  # relative, in float32: sums in another order
FORMS: dict[str, QuantFormat] = {
    **{fmt.name: fmt for fmt in FORMATS},
    "int4-g32": Int4(32),
    "int4-g64": Int4(64, scale_dtype=torch.bfloat16),
    "int4-g32-zero": Int4(32, True, torch.float32),
    "int4-g64-zero": Int4(64, True),
    "int4-g128-zero": Int4(128, True),
    "int4-g32-order": Int4(32, act_order=True),
    "int4-g128-zero-order": Int4(128, True, act_order=True),
    "int8-g32": Int8(32),
    "int8-g64": Int8(64),
    "int8-g128": Int8(128),
}
KERNELS = {"decode": (moe_decode, moe_decode_ref), "prefill": (moe_prefill, moe_prefill_ref)}
GATES = {
    "silu": Gate(),
    "gelu": Gate("gelu_tanh"),
    "gpt_oss": Gate("gpt_oss", limit=1.5),
    "clamped": Gate(limit=1.0),
}
ROWS = (1, 2, 3, 8, 16, 17)
SHAPES = ((1, 1), (3, 1), (2, 3))  # (D, I) in groups of columns: neither is a multiple of a tile
FACTORS: dict[str, tuple[Any, ...]] = {
    "kernel": tuple(KERNELS), "form": tuple(FORMS), "gate": tuple(GATES), "bias": (False, True), "rows": ROWS,
    "shape": SHAPES, "dtype": (torch.float32, torch.bfloat16, torch.float16), "case": ("mixed", "absent", "one", "none"),
}  # fmt: skip
POOLS = {"mixed": [0, 2, -1, 1], "absent": [-1, 1], "one": [2], "none": [-1], "few": [-1] * 9 + [0]}


def covering(factors: dict[str, tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Cases in which every two values of different factors meet at least once, made greedily and always the same."""
    names = list(factors)
    open_pairs = {
        (a, x, b, y)
        for a, b in itertools.combinations(range(len(names)), 2)
        for x in range(len(factors[names[a]]))
        for y in range(len(factors[names[b]]))
    }
    cases = []
    while open_pairs:
        a, x, b, y = min(open_pairs)
        chosen: dict[int, int] = {a: x, b: y}
        for c in (c for c in range(len(names)) if c not in chosen):
            chosen[c] = max(
                range(len(factors[names[c]])),
                key=lambda z: (len(met({**chosen, c: z}) & open_pairs), -z),  # noqa: B023  (used at once)
            )
        open_pairs -= met(chosen)
        cases.append(tuple(factors[name][chosen[i]] for i, name in enumerate(names)))
    return cases


def met(chosen: dict[int, int]) -> set[tuple[int, int, int, int]]:
    return {(a, chosen[a], b, chosen[b]) for a, b in itertools.combinations(sorted(chosen), 2)}


def name_of(value: Any) -> str:
    return str(value).removeprefix("torch.").replace(", ", "x") if not isinstance(value, str) else value


def layout_of(fmt: QuantFormat, shape: tuple[int, int], bias: bool) -> SlotLayout:
    """K-quants have a mixed down, as files do."""
    step = {"q4_k": 256, "q6_k": 256}.get(fmt.name, max(32, fmt.group))
    down = next(f for f in FORMATS if f.name == "q6_k") if fmt.name == "q4_k" else None
    if step == 256:
        shape = (1, 1)  # 256 columns are long enough for the interpreter
    return SlotLayout(shape[1] * step, shape[0] * step, fmt, bias, down)


def check(kernel: str, form: str, gate: str, bias: bool, rows: int, shape: Any, dtype: torch.dtype, case: str) -> None:
    layout = layout_of(FORMS[form], shape, bias)
    slots = filled_slots(layout, 3)
    # decode costs the interpreter a program a pair: long batches go with few experts
    slot_TK, weight_TK = routing(rows, 1 if rows > 3 else 2, POOLS[case], seed=rows)
    x_TD = torch.randn(rows, layout.hidden, generator=torch.Generator().manual_seed(1)).to(dtype)
    run, ref = KERNELS[kernel]
    # few large programs are faster here; the shipped tiles run in the cases of one and two rows
    large = kernel == "decode" and (rows > 2 or layout.format.name in ("q4_k", "q6_k"))
    wide = {"rows_a_lane": 64} if large else {}
    with poisoned():
        got = run(layout, GATES[gate], x_TD, slots, slot_TK, weight_TK, **wide)  # type: ignore[operator]
    want = ref(layout, GATES[gate], x_TD.float(), slots, slot_TK, weight_TK)
    assert got.dtype == dtype
    if case == "none":
        assert not got.any()
        return
    error = float((got.float() - want).norm() / want.norm())
    # the kernels compute in float32 here; prefill keeps h in x's dtype, and the interpreter's cast to bf16 truncates
    assert error < {torch.float32: TOLERANCE, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


CASES = covering(FACTORS)


@pytest.mark.parametrize(tuple(FACTORS), CASES, ids=lambda value: name_of(value))
def test_kernels_agree_with_plain_torch(
    kernel: str, form: str, gate: str, bias: bool, rows: int, shape: Any, dtype: torch.dtype, case: str
) -> None:
    check(kernel, form, gate, bias, rows, shape, dtype, case)


@pytest.mark.parametrize("form", [name for name in FORMS if "g64" not in name and name != "q4_k"])
@pytest.mark.parametrize("blocks", (32, 33))
def test_long_rows_use_all_lanes_for_one_row(form: str, blocks: int) -> None:
    """32 blocks of a row at a time, as real models have them, with and without a remainder."""
    fmt = FORMS[form]
    step = max(fmt.group, 32) if form != "q6_k" else 256
    width = {16: 8, 8: 16}.get(fmt.bits, 32) * blocks
    layout = SlotLayout(step, -(-width // step) * step, fmt)
    slots, x_TD = filled_slots(layout, 1), torch.randn(1, layout.hidden)
    one, weight = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1)
    assert tile_of(stored(layout, "gate_up")).blocks == 32 or blocks == 33
    got = moe_decode(layout, Gate(), x_TD, slots, one, weight, rows_a_lane=64)
    want = moe_decode_ref(layout, Gate(), x_TD, slots, one, weight)
    assert float((got - want).norm() / want.norm()) < TOLERANCE


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", (64, 500))
def test_many_rows(kernel: str, rows: int) -> None:
    # in decode a pair that is not resident costs nothing, and every other one a program
    case = "few" if kernel == "decode" else "mixed"
    form = "int4-g32" if kernel == "prefill" else "int8-g32"
    check(kernel, form, "silu", False, rows=rows, shape=(1, 1), dtype=torch.float32, case=case)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", FORMS)
def test_full_product(kernel: str, form: str) -> None:
    """Every gate, bias, row count and odd shape of a kernel and a format, float32; long decode batches mostly absent."""
    for gate, rows, (shape, bias) in itertools.product(
        GATES, (*ROWS, 64, 500), zip(SHAPES, (True, False, True), strict=True)
    ):
        if rows < 64 or shape == (1, 1):
            case = "few" if kernel == "decode" and rows >= 64 else "mixed"
            check(kernel, form, gate, bias, rows, shape, torch.float32, case)


def small(form: str = "int4-g32") -> tuple[SlotLayout, torch.Tensor]:
    layout = layout_of(FORMS[form], (2, 1), False)
    return layout, filled_slots(layout, 4)


@pytest.mark.parametrize("rows", (2, 17))
def test_waves_give_the_same_bits_as_one_go(rows: int) -> None:
    layout, slots = small()
    slot_TK, weight_TK = routing(rows, 2, [0, 1, 2, 3], 3)
    x_TD = torch.randn(rows, layout.hidden)
    whole = TritonCompute(layout, Gate())(x_TD, slots, slot_TK, weight_TK)
    waves = TritonCompute(layout, Gate())
    waves._reserve(slot_TK, x_TD)
    waves._part_PD.fill_(float("nan"))
    for members in ((3, 0), (1,), (2,)):
        # a later wave sits in the same slots that an earlier one used
        pool, table = torch.zeros_like(slots[:2]), torch.full_like(slot_TK, -1)
        for place, member in enumerate(members):
            pool[place] = slots[member]
            table[slot_TK == member] = place
        waves.wave(x_TD, pool, table, weight_TK)
    assert torch.equal(waves.finish(x_TD, slot_TK, weight_TK), whole)


@pytest.mark.parametrize("rows", (2, 17))
def test_results_repeat_and_do_not_depend_on_the_slot(rows: int) -> None:
    layout, slots = small()
    slot_TK, weight_TK = routing(rows, 2, [0, 1, 2, -1], 4)
    x_TD = torch.randn(rows, layout.hidden)
    compute = TritonCompute(layout, Gate())
    first = compute(x_TD, slots, slot_TK, weight_TK)
    compute._part_PD.fill_(float("nan"))  # nothing of it may be read before it is written
    compute._h_PI.fill_(float("nan"))
    assert torch.equal(compute(x_TD, slots, slot_TK, weight_TK), first)
    moved = torch.where(slot_TK >= 0, (slot_TK + 1) % 4, -1).int()
    assert torch.equal(compute(x_TD, slots.roll(1, 0).clone(), moved, weight_TK), first)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["int4-g32", "mxfp4", "int8-g32", "fp8_block", "nvfp4", "bf16"]))
    hidden, width = (data.draw(st.integers(1, 6)) * 32 for _ in range(2))
    layout = SlotLayout(width, hidden, FORMS[form], data.draw(st.booleans()))
    rows, top_k = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 2))
    slots, (slot_TK, weight_TK) = (
        filled_slots(layout, 2),
        routing(rows, top_k, [0, 1, -1], data.draw(st.integers(0, 99))),
    )
    x_TD = torch.randn(rows, hidden)
    want = TorchCompute(layout, Gate())(x_TD, slots, slot_TK, weight_TK)
    for run in (moe_decode, moe_prefill):
        got = run(layout, Gate(), x_TD, slots, slot_TK, weight_TK)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def faulty() -> Iterator[tuple[str, dict[str, Any], str]]:
    layout, slots = small()
    slot_TK, weight_TK = routing(2, 2, [0, 1], 0)
    good = {"x_TD": torch.zeros(2, layout.hidden), "slots_SB": slots, "slot_TK": slot_TK, "weight_TK": weight_TK}
    yield "hidden", {**good, "x_TD": torch.zeros(2, 32)}, "got x"
    yield "dtype", {**good, "x_TD": torch.zeros(2, layout.hidden, dtype=torch.float64)}, "got x"
    yield "short", {**good, "slots_SB": slots[:, :128]}, "got slots"
    raw = torch.zeros(4 * layout.stride + 136, dtype=torch.uint8)
    start = 8 - raw.data_ptr() % 16
    yield "misaligned", {**good, "slots_SB": raw[start : start + 4 * layout.stride].view(4, -1)}, "aligned to 16"
    yield "range", {**good, "slot_TK": torch.full_like(slot_TK, 4)}, "got slots 4"
    yield "below", {**good, "slot_TK": torch.full_like(slot_TK, -2)}, "got slots -2"
    yield "long", {**good, "slot_TK": slot_TK.long()}, "got slot_TK"
    yield "weights", {**good, "weight_TK": weight_TK[:, :1]}, "got weight_TK"


@pytest.mark.parametrize(("arguments", "line"), [pytest.param(a, line, id=name) for name, a, line in faulty()])
def test_bad_input_is_refused_before_a_launch(arguments: dict[str, Any], line: str) -> None:
    layout, _ = small()
    with pytest.raises(InputError, match=line) as caught:
        TritonCompute(layout, Gate())(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", (2, 17))
def test_a_pool_with_wider_rows_than_the_layout(rows: int) -> None:
    layout, slots = small()
    wide = torch.full((4, layout.stride + 256), 0xA5, dtype=torch.uint8)
    wide[:, : layout.stride] = slots
    slot_TK, weight_TK = routing(rows, 2, [0, 1, 3], 5)
    x_TD = torch.randn(rows, layout.hidden)
    compute = TritonCompute(layout, Gate())
    assert torch.equal(compute(x_TD, wide, slot_TK, weight_TK), compute(x_TD, slots, slot_TK, weight_TK))


@pytest.mark.parametrize("rows", (2, 17))
def test_what_is_not_a_number_stays_with_its_token(rows: int) -> None:
    layout, slots = small()
    slot_TK, weight_TK = torch.zeros(rows, 2, dtype=torch.int32), torch.ones(rows, 2)
    slot_TK[:, 1] = -1
    weight_TK[:, 1] = float("nan")  # of a pair that adds nothing
    x_TD = torch.randn(rows, layout.hidden)
    x_TD[0, 3] = float("nan")
    out_TD = TritonCompute(layout, GATES["gpt_oss"])(x_TD, slots, slot_TK, weight_TK)
    assert out_TD[0].isnan().all()
    assert out_TD[1:].isfinite().all()


def test_views_that_kernels_cannot_read_are_refused_or_copied() -> None:
    layout, slots = small()
    slot_TK, weight_TK = routing(2, 2, [0, 1], 0)
    raw = torch.randn(2 * layout.hidden + 16)
    start = (-raw.data_ptr() % 16) // 4 + 1
    off = raw[start : start + 2 * layout.hidden].view(2, -1)
    with pytest.raises(InputError, match="past a multiple of 16"):
        moe_decode(layout, Gate(), off, slots, slot_TK, weight_TK)
    with pytest.raises(InputError, match="not contiguous"):
        moe_prefill(layout, Gate(), off.clone().T.contiguous().T, slots, slot_TK, weight_TK)
    compute = TritonCompute(layout, Gate())
    whole = compute(off.clone(), slots, slot_TK, weight_TK)
    assert torch.equal(compute(off, slots, slot_TK, weight_TK), whole)
    assert torch.equal(compute(off.clone().T.contiguous().T, slots, slot_TK, weight_TK), whole)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(-60, 30))
def test_the_recipe_of_the_fast_path_keeps_eleven_bits(seed: int, power: int) -> None:
    """The instructions themselves run on NVIDIA alone; this is their arithmetic, rounding by rounding."""
    make = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (16, 8), generator=make)
    x_8 = torch.randn(8, generator=make) * 2.0**power
    exact = codes.double() @ x_8.double()
    bound = 6 * 2.0**-11 * (codes.double() @ x_8.double().abs())
    assert bool(((nibble_dot_ref(codes, x_8) - exact).abs() <= bound).all())


def test_a_bf16_expert_matches_torch_matmul_of_the_same_weights() -> None:
    layout = SlotLayout(32, 64, Bf16())
    slots = filled_slots(layout, 1)
    x_TD, one = torch.randn(2, 64), torch.zeros(2, 1, dtype=torch.int32)
    expert = layout.unpack(slots[0])
    h = torch.nn.functional.silu(x_TD @ expert.gate.T) * (x_TD @ expert.up.T)
    got = moe_decode(layout, Gate(), x_TD, slots, one, torch.ones(2, 1))
    torch.testing.assert_close(got, h @ expert.down.T, rtol=1e-5, atol=1e-6)
