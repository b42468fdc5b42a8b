"""One buffer an expert: aligned, exact, and closed to what does not fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.kernels.shapes import FAMILIES
from rgpu.quant.format import QuantFormat
from rgpu.quant.formats import by_name
from rgpu.quant.int4 import Int4
from rgpu.quant.layout import ALIGNMENT, ExpertArrays, SlotLayout
from rgpu.quant.q4_k import Q4K
from tests.unit.quant.samples import CASES, case_id, stored

I, D = 256, 512  # noqa: E741  (K-quants need 256 columns of both)
LINE = r"^[^\n]*got [^\n]*expected [^\n]*$"


def expert_of(layout: SlotLayout, seed: int = 0) -> ExpertArrays:
    """A random expert as `layout` wants it."""
    wide, tall = (layout.intermediate, layout.hidden), (layout.hidden, layout.intermediate)
    matrices = [stored(layout.format, *shape, seed + i)[1] for i, shape in enumerate((wide, wide, tall))]
    rng = torch.Generator().manual_seed(seed)
    biases = [torch.randn(n, generator=rng) if layout.bias else None for n in (wide[0], wide[0], wide[1])]
    orders = [torch.randperm(n, generator=rng).int() for n in (wide[1], wide[0])]
    ordered = getattr(layout.format, "act_order", False)
    return ExpertArrays(*matrices, *biases, *(orders if ordered else (None, None)))


def buffer_of(layout: SlotLayout) -> torch.Tensor:
    """A buffer full of rubbish."""
    return torch.full((layout.stride,), 0xA5, dtype=torch.uint8)


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, or both None."""
    if a is None or b is None:
        return a is b
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("fmt", CASES, ids=case_id)
def test_sections_are_aligned_and_apart(fmt: QuantFormat, bias: bool) -> None:
    layout = SlotLayout(I, D, fmt, bias)
    end = 0
    for section in layout.sections.values():
        assert section.offset % 128 == 0 and end <= section.offset < end + ALIGNMENT
        end = section.offset + section.part.nbytes
    assert end == layout.nbytes <= layout.stride < end + ALIGNMENT and layout.stride % 128 == 0
    assert layout.payload_bytes <= layout.nbytes
    names = list(layout.sections)
    assert names[0] == "gate_up.q" and names.index("down.q") * 2 == len(names)


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("fmt", CASES, ids=case_id)
def test_arrays_come_back_and_numbers_are_those_of_the_format(fmt: Any, bias: bool) -> None:
    layout = SlotLayout(I, D, fmt, bias)
    expert, row = expert_of(layout), buffer_of(layout)
    layout.pack(expert, row)
    back = layout.arrays(row)
    for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias", "order_D", "order_I"):
        assert same(getattr(back, name), getattr(expert, name)), name
    dense = layout.unpack(row)
    for name, order in (("gate", expert.order_D), ("up", expert.order_D), ("down", expert.order_I)):
        numbers, plain = fmt.unpack(getattr(expert, name)), getattr(dense, name)
        assert same(plain if order is None else plain[:, order], numbers), name
    assert same(dense.gate_bias, expert.gate_bias) and same(dense.down_bias, expert.down_bias)


@given(
    fmt=st.sampled_from([case for case in CASES if case.name not in ("q4_k", "q6_k")]),
    i=st.integers(1, 2),
    d=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_any_size_comes_back(fmt: QuantFormat, i: int, d: int, bias: bool, seed: int) -> None:
    layout = SlotLayout(128 * i, 128 * d, fmt, bias)
    expert, row = expert_of(layout, seed), buffer_of(layout)
    layout.pack(expert, row)
    assert same(layout.arrays(row).up, expert.up) and same(layout.arrays(row).down, expert.down)
    again = buffer_of(layout)
    layout.pack(layout.arrays(row), again)
    assert torch.equal(again, row)


def test_gate_and_up_lie_row_beside_row() -> None:
    layout = SlotLayout(I, D, by_name("mxfp4"), bias=True)
    expert, row = expert_of(layout), buffer_of(layout)
    layout.pack(expert, row)
    views = layout.views(row)
    for name in ("q", "scale"):
        assert torch.equal(views[f"gate_up.{name}"][0::2], expert.gate[name])
        assert torch.equal(views[f"gate_up.{name}"][1::2], expert.up[name])
    assert expert.gate_bias is not None and torch.equal(views["gate_up.bias"][0::2], expert.gate_bias)


def test_with_act_order_only_the_input_of_gate_up_is_permuted() -> None:
    """Rows of gate and up come out in the order of down's stored columns: down takes h as it comes."""
    layout = SlotLayout(I, D, Int4(group=32, act_order=True), bias=True)
    expert, row = expert_of(layout), buffer_of(layout)
    layout.pack(expert, row)
    views, dense = layout.views(row), layout.unpack(row)

    def numbers(matrix: str) -> torch.Tensor:
        return layout.format.unpack({name: views[f"{matrix}.{name}"] for name in ("q", "scale")})

    order_D, order_I = views["gate_up.order"], views["down.order"]
    assert torch.equal(numbers("gate_up")[0::2], dense.gate[order_I][:, order_D])
    assert torch.equal(numbers("gate_up")[1::2], dense.up[order_I][:, order_D])
    assert torch.equal(numbers("down"), dense.down[:, order_I])
    assert dense.up_bias is not None and torch.equal(views["gate_up.bias"][1::2], dense.up_bias[order_I])


def test_arrays_are_copies() -> None:
    layout = SlotLayout(I, D, Int4(act_order=True), bias=True)
    row = buffer_of(layout)
    expert = expert_of(layout)
    layout.pack(expert, row)
    back = layout.arrays(row)
    row.zero_()
    assert (
        same(back.gate, expert.gate) and same(back.order_D, expert.order_D) and same(back.down_bias, expert.down_bias)
    )


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [
        (by_name("bf16"), 16),
        (by_name("int8", group=64), 8 + 16 / 64),
        (Int4(group=32), 4.5),
        (Int4(group=64, asymmetric=True), 4 + 24 / 64),
        (by_name("mxfp4"), 4.25),
        (by_name("nf4"), 4.5),
        (by_name("fp8_block"), 8 + 32 / 128**2),
        (by_name("q8_0"), 8.5),
        (Q4K(), 4 + 16 / 32 + 32 / 256),  # gguf packs its 6-bit scales and is 1/8 of a bit smaller
        (by_name("q6_k"), 6 + 8 / 16 + 16 / 256),
    ],
    ids=lambda value: case_id(value) if hasattr(value, "bits") else "",
)
def test_bits_per_weight(fmt: QuantFormat, bits: float) -> None:
    assert SlotLayout(I, D, fmt).bits_per_weight == pytest.approx(bits, rel=1e-12)


LAYOUT = SlotLayout(I, D, Int4(group=64))
GOOD = expert_of(LAYOUT)
BIASED = SlotLayout(I, D, Int4(group=64), bias=True)
WITH_BIASES = expert_of(BIASED)
ORDERED = SlotLayout(I, D, Int4(group=64, act_order=True))
WITH_ORDERS = expert_of(ORDERED)


def changed(part: str, array: torch.Tensor | None) -> ExpertArrays:
    """`GOOD` with one array of up replaced or left out."""
    up = {name: value for name, value in GOOD.up.items() if name != part}
    return replace(GOOD, up=up if array is None else up | {part: array})


@pytest.mark.parametrize(
    ("layout", "expert"),
    [
        pytest.param(LAYOUT, changed("scale", GOOD.up["scale"].float()), id="scale of another dtype"),
        pytest.param(LAYOUT, changed("scale", GOOD.up["scale"][:, 1:]), id="scale of another shape"),
        pytest.param(LAYOUT, changed("scale", GOOD.up["scale"] * torch.inf), id="scale not finite"),
        pytest.param(LAYOUT, changed("scale", None), id="no scale"),
        pytest.param(LAYOUT, changed("zero", GOOD.up["q"]), id="a zero point too many"),
        pytest.param(LAYOUT, changed("q", GOOD.up["q"].int()), id="codes of another dtype"),
        pytest.param(LAYOUT, replace(GOOD, down=GOOD.gate), id="down the wrong way round"),
        pytest.param(LAYOUT, WITH_BIASES, id="biases too many"),
        pytest.param(BIASED, GOOD, id="biases missing"),
        pytest.param(BIASED, replace(WITH_BIASES, up_bias=None), id="one bias missing"),
        pytest.param(BIASED, replace(WITH_BIASES, up_bias=torch.zeros(D)), id="bias of another shape"),
        pytest.param(BIASED, replace(WITH_BIASES, down_bias=torch.zeros(D).half()), id="bias of another dtype"),
        pytest.param(BIASED, replace(WITH_BIASES, down_bias=torch.full((D,), torch.nan)), id="bias not finite"),
        pytest.param(LAYOUT, replace(GOOD, order_D=torch.arange(D).int()), id="an order too many"),
        pytest.param(ORDERED, GOOD, id="orders missing"),
        pytest.param(ORDERED, replace(WITH_ORDERS, order_I=torch.zeros(I).int()), id="order no permutation"),
        pytest.param(ORDERED, replace(WITH_ORDERS, order_I=torch.arange(D).int()), id="order of another size"),
        pytest.param(SlotLayout(96, D, Int4(group=64)), GOOD, id="width no multiple of the group"),
        pytest.param(SlotLayout(I, 128, Q4K()), GOOD, id="hidden size below a block"),
    ],
)
def test_an_expert_that_does_not_fit_is_refused(layout: SlotLayout, expert: ExpertArrays) -> None:
    row = torch.zeros(1 << 20, dtype=torch.uint8)
    with pytest.raises(InputError, match=LINE) as caught:
        layout.pack(expert, row)
    assert "\n" not in str(caught.value) and not row.any()  # nothing half-written


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(torch.zeros(LAYOUT.nbytes - 1, dtype=torch.uint8), id="short"),
        pytest.param(torch.zeros(LAYOUT.nbytes + 1, dtype=torch.uint8)[1:], id="misaligned"),
        pytest.param(torch.zeros(2 * LAYOUT.nbytes, dtype=torch.uint8)[::2], id="strided"),
        pytest.param(torch.zeros(1, LAYOUT.nbytes, dtype=torch.uint8), id="two dimensions"),
        pytest.param(torch.zeros(LAYOUT.nbytes, dtype=torch.int8), id="signed"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(row: torch.Tensor) -> None:
    for call in (LAYOUT.views, LAYOUT.arrays, LAYOUT.unpack, lambda buffer: LAYOUT.pack(GOOD, buffer)):
        with pytest.raises(InputError, match=r"^[^\n]*got [^\n]*$"):
            call(row)


@pytest.mark.parametrize("name", [name for name, _ in FAMILIES])
def test_every_format_unpacks_on_the_device_of_its_slot(name: str) -> None:
    layout = SlotLayout(256, 512, dict(FAMILIES)[name], bias=True)
    expert = layout.unpack(torch.zeros(layout.stride, dtype=torch.uint8, device="meta"))  # mixes with no other device
    assert expert.gate.device.type == "meta" and tuple(expert.gate.shape) == (256, 512)
