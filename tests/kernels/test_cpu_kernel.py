"""The compiled kernel itself: every code of every format is read as the format says, by vector instructions alone."""

from collections.abc import Iterator

import pytest
import torch
from llvmlite import binding as llvm

from rgpu.errors import InputError
from rgpu.kernels.cpu import decode
from rgpu.kernels.cpu.activations import ready_numbers
from rgpu.kernels.cpu.emit import LANES
from rgpu.kernels.cpu.machine import assembly, is_x86
from rgpu.kernels.cpu.matrix import matrix_of
from rgpu.kernels.cpu.multiply import TILE, kernel, source, span_of
from rgpu.quant.bf16 import Bf16
from rgpu.quant.format import QuantFormat
from rgpu.quant.formats import FORMATS
from rgpu.quant.fp8_block import Fp8Block
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from rgpu.quant.layout import SlotLayout
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.quant.nf4 import Nf4
from rgpu.types import Gate
from tests.experts import filled_slots

EXACT = ("bf16", "fp8_block", "mxfp4", "nf4")  # what they subtract or how they scale is not rounded on the way


def layout_of(fmt: QuantFormat) -> SlotLayout:
    return SlotLayout(256, 256, fmt)


def read_back(layout: SlotLayout, slots: torch.Tensor, name: str) -> torch.Tensor:
    """float32 [N, K]: the matrix `name` of slot 0, as products with the rows of an identity matrix."""
    matrix = matrix_of(layout, name)
    x, y = torch.eye(matrix.cols), torch.empty(matrix.cols, matrix.rows)
    numbers = torch.arange(matrix.cols, dtype=torch.int32)
    ready = torch.empty(ready_numbers(matrix, TILE))
    for k in range(0, matrix.cols, TILE):
        rows = numbers[k : k + TILE]
        places = (t.data_ptr() for t in (slots, x, rows, y, rows, ready))
        kernel(matrix, len(rows), None).call(*places, 0, matrix.rows)
    return y.T


def compare(layout: SlotLayout, slots: torch.Tensor) -> None:
    dense = layout.unpack(slots[0])
    both = read_back(layout, slots, "gate_up")
    for got, wanted in (
        (both[0::2], dense.gate),
        (both[1::2], dense.up),
        (read_back(layout, slots, "down"), dense.down),
    ):
        if layout.format.name in EXACT:
            assert torch.equal(got, wanted)
        else:
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_every_weight_is_read(fmt: QuantFormat) -> None:
    compare(layout_of(fmt), filled_slots(layout_of(fmt), 1))


def test_powers_of_two_at_both_ends_of_e8m0() -> None:
    layout = layout_of(Mxfp4())
    slots = filled_slots(layout, 1)
    ends = torch.tensor([0, 1, 127, 252], dtype=torch.uint8)
    for name in ("gate_up.scale", "down.scale"):
        scale = layout.views(slots[0])[name]
        scale.copy_(ends.repeat(scale.numel() // 4).view_as(scale))
    compare(layout, slots)


@pytest.fixture
def no_x86(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kernel.cache_clear()
    monkeypatch.setattr(decode, "is_x86", lambda: False)
    yield
    kernel.cache_clear()


@pytest.mark.usefixtures("no_x86")
def test_nf4_without_an_instruction_of_one_processor_family() -> None:
    assert "x86" not in source(matrix_of(layout_of(Nf4()), "down"), 1, None)
    compare(layout_of(Nf4()), filled_slots(layout_of(Nf4()), 1))


@pytest.mark.skipif(not is_x86(), reason="reads x86 assembly")
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize(("name", "gate"), [("gate_up", None), ("down", Gate("gelu_tanh"))])
def test_the_machine_code_is_vectors_and_calls_nothing(fmt: QuantFormat, name: str, gate: Gate | None) -> None:
    matrix = matrix_of(layout_of(fmt), name)
    code = assembly(source(matrix, 2, gate))
    assert "call" not in code
    products = [line for line in code.splitlines() if "ymm" in line and ("vfmadd" in line or "vmulps" in line)]
    assert len(products) >= 2 * span_of(matrix) // LANES  # of one turn, for two rows of activations
    assert "pextr" not in code and "vcvtsi2ss" not in code  # no lane is taken out or converted by itself


@pytest.mark.parametrize(
    ("fmt", "cols", "span"),
    [(Bf16(), 40, 8), (Int8(), 48, 16), (Int4(32), 96, 32), (Int4(128), 256, 64), (Fp8Block(), 2880, 64)],
)
def test_spans_fit_blocks_groups_and_columns(fmt: QuantFormat, cols: int, span: int) -> None:
    assert span_of(matrix_of(SlotLayout(256, cols, fmt), "gate_up")) == span


def test_a_processor_without_fused_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "get_process_triple", lambda: "x86_64-unknown-linux-gnu")
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx2": True, "fma": False})
    with pytest.raises(InputError, match="without fma, f16c; expected avx2, fma, f16c; use TorchCompute"):
        assembly(source(matrix_of(layout_of(Bf16()), "down"), 1, None))
