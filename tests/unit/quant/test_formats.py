"""Every format: what goes in comes out, what does not fit is refused with one line."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.quant.bf16 import Bf16
from rgpu.quant.fields import pack_fields, unpack_fields
from rgpu.quant.floats import decode_e2m1, decode_e4m3, decode_e8m0
from rgpu.quant.format import check_arrays
from rgpu.quant.formats import FORMATS, by_name
from rgpu.quant.fp8_block import Fp8Block
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.quant.nf4 import Nf4
from rgpu.quant.nvfp4 import Nvfp4
from rgpu.quant.q4_k import Q4K
from rgpu.quant.q6_k import Q6K
from rgpu.types import Gate
from tests.unit.quant.samples import CASES, case_id, stored

LINE = r"^[^\n]*got [^\n]*expected [^\n]*$"  # one line that says what was got and what was expected
BAD_COLUMNS = {"bf16": 4, "int8": 8, "fp8_block": 24, "q8_0": 48, "q4_k": 128, "q6_k": 320, "mxfp4": 48, "nvfp4": 48}


@given(
    bits=st.sampled_from((2, 4, 8)), rows=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=60, deadline=None)
def test_fields_come_back(bits: int, rows: int, blocks: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, blocks * 128 // bits), generator=rng).to(torch.uint8)
    words = pack_fields(codes, bits)
    assert words.dtype == torch.int16 and words.shape == (rows, codes.shape[1] * bits // 16)
    assert torch.equal(unpack_fields(words, bits), codes)


@pytest.mark.parametrize("bits", (2, 4, 8))
def test_fields_lie_where_the_kernels_read_them(bits: int) -> None:
    """Field j of word u of block b is column b*8J + 8j + u, spelt out bit by bit."""
    per_word = 16 // bits
    codes = torch.randint(0, 1 << bits, (1, 16 * per_word), generator=torch.Generator().manual_seed(1))
    words = pack_fields(codes, bits)[0].tolist()
    for b in range(2):
        for u in range(8):
            fields = [int(codes[0, b * 8 * per_word + 8 * j + u]) << (j * bits) for j in range(per_word)]
            assert words[8 * b + u] & 0xFFFF == sum(fields)


@pytest.mark.parametrize("fmt", CASES, ids=case_id)
@given(rows=st.integers(1, 6), blocks=st.integers(1, 2), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_store_keeps_codes_and_makes_the_parts(fmt: Any, rows: int, blocks: int, seed: int) -> None:
    codes, arrays = stored(fmt, rows, 256 * blocks, seed)
    assert [(n, a.dtype, tuple(a.shape)) for n, a in arrays.items()] == [
        (p.name, p.dtype, p.shape) for p in fmt.parts(rows, 256 * blocks)
    ]
    check_arrays(fmt, arrays, rows, 256 * blocks)
    assert torch.equal(fmt.codes(arrays), codes)
    numbers = fmt.unpack(arrays)
    assert numbers.dtype == torch.float32 and numbers.shape == codes.shape and bool(numbers.isfinite().all())


def test_e4m3_of_all_codes_is_torch_s_own() -> None:
    codes = torch.arange(256).to(torch.uint8)
    theirs = codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(decode_e4m3(codes).view(torch.int32)[~theirs.isnan()], theirs.view(torch.int32)[~theirs.isnan()])
    assert (
        theirs.isnan().nonzero().flatten().tolist()
        == decode_e4m3(codes).isnan().nonzero().flatten().tolist()
        == [127, 255]
    )


def test_e8m0_of_all_codes_is_torch_s_own() -> None:
    codes = torch.arange(255).to(torch.uint8)
    assert torch.equal(decode_e8m0(codes), codes.view(torch.float8_e8m0fnu).float())
    assert decode_e8m0(codes).tolist() == [2.0 ** (code - 127) for code in range(255)]


def test_e2m1_is_sign_two_bits_of_exponent_and_one_of_mantissa() -> None:
    def number(code: int) -> float:
        exponent, mantissa = code >> 1 & 3, code & 1
        size = mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
        return -size if code >> 3 else size

    assert decode_e2m1(torch.arange(16)).tolist() == [number(code) for code in range(16)]


def refused(call: Any) -> None:
    with pytest.raises(InputError, match=LINE) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fmt", FORMATS, ids=case_id)
def test_columns_that_do_not_fit_are_refused(fmt: Any) -> None:
    refused(lambda: fmt.parts(4, BAD_COLUMNS.get(fmt.name, 96)))
    refused(lambda: fmt.parts(4, 0))


ONE = torch.zeros(2, 256, dtype=torch.uint8)
HALF_ONE = torch.ones(2, 1, dtype=torch.float16)
BYTES = {n: torch.zeros(2, 256 // n, dtype=torch.uint8) for n in (16, 32)}


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: Int8().store(ONE.int() + 256, HALF_ONE), id="int8 code 256"),
        pytest.param(lambda: Int8().store(ONE.to(torch.int8) - 1, HALF_ONE), id="int8 code -1"),
        pytest.param(lambda: Int8().store(ONE.float(), HALF_ONE), id="float codes"),
        pytest.param(lambda: Int8().store(ONE[0], HALF_ONE), id="codes of one dimension"),
        pytest.param(lambda: Int8().store(ONE, HALF_ONE.float()), id="scale of another dtype"),
        pytest.param(lambda: Int8().store(ONE, HALF_ONE.repeat(1, 2)), id="scale of another shape"),
        pytest.param(lambda: Int8().store(ONE, HALF_ONE * torch.inf), id="infinite scale"),
        pytest.param(lambda: Int4().store(ONE, torch.ones(2, 2)), id="int4 scale of another dtype"),
        pytest.param(lambda: Int4().store(ONE, torch.ones(2, 2).half(), ONE[:, :2]), id="int4 zero points too many"),
        pytest.param(lambda: Int4(asymmetric=True).store(ONE, torch.ones(2, 2).half()), id="int4 without zero points"),
        pytest.param(
            lambda: Int4(asymmetric=True).store(ONE, torch.ones(2, 2).half(), ONE[:, :2] + 16), id="int4 zero point 16"
        ),
        pytest.param(lambda: Gate("gpt_oss", limit=float("nan")), id="gate limit NaN"),
        pytest.param(lambda: Gate("gpt_oss", alpha=float("inf"), limit=7.0), id="gate alpha infinite"),
        pytest.param(lambda: Nf4().store(ONE + 16, torch.ones(2, 4)), id="nf4 code 16"),
        pytest.param(lambda: Nf4().store(ONE, torch.full((2, 4), torch.nan)), id="nf4 scale NaN"),
        pytest.param(lambda: Mxfp4().store(ONE, BYTES[32] + 255), id="e8m0 NaN"),
        pytest.param(lambda: Mxfp4().store(ONE, BYTES[32] + 253), id="e8m0 overflow"),
        pytest.param(lambda: Nvfp4().store(ONE, BYTES[16] + 127, torch.ones(1)), id="e4m3 scale NaN"),
        pytest.param(lambda: Nvfp4().store(ONE, BYTES[16].float(), torch.ones(1)), id="float32 scales"),
        pytest.param(lambda: Mxfp4().store(ONE, BYTES[32].int()), id="int32 scales"),
        pytest.param(lambda: Bf16().store(ONE), id="bf16 of integers"),
        pytest.param(lambda: Bf16().store(ONE[0].bfloat16()), id="bf16 of one dimension"),
        pytest.param(lambda: Bf16().store(torch.full((2, 8), torch.nan).bfloat16()), id="bf16 NaN"),
        pytest.param(lambda: Nvfp4().store(ONE, BYTES[16], torch.full((1,), torch.inf)), id="infinite global scale"),
        pytest.param(lambda: Nvfp4().store(ONE, BYTES[16], torch.ones(2)), id="two global scales"),
        pytest.param(lambda: Fp8Block().store(ONE + 255, torch.ones(1, 2)), id="e4m3 weight NaN"),
        pytest.param(lambda: Fp8Block().store(ONE, torch.ones(2, 1)), id="fp8 scales of another shape"),
        pytest.param(lambda: Q4K().store(ONE, BYTES[32] + 64, BYTES[32], HALF_ONE, HALF_ONE), id="q4_k scale 64"),
        pytest.param(lambda: Q4K().store(ONE, BYTES[32], BYTES[32] + 64, HALF_ONE, HALF_ONE), id="q4_k min 64"),
        pytest.param(lambda: Q6K().store(ONE + 64, BYTES[16].to(torch.int8), HALF_ONE), id="q6_k code 64"),
        pytest.param(lambda: Q6K().store(ONE, BYTES[16], HALF_ONE), id="q6_k scale uint8"),
    ],
)
def test_bad_input_is_refused(call: Any) -> None:
    refused(call)


def test_float8_tensors_go_in_as_they_are() -> None:
    codes = (torch.arange(512) % 127).to(torch.uint8).reshape(2, 256)
    typed = Fp8Block().store(codes.view(torch.float8_e4m3fn), torch.ones(1, 2))
    assert torch.equal(Fp8Block().codes(typed), codes)
    powers = codes[:, :8] + 1
    assert torch.equal(Mxfp4().store(ONE, powers.view(torch.float8_e8m0fnu))["scale"], powers)
    scale = codes[:, :16]
    arrays = Nvfp4().store(ONE, scale.view(torch.float8_e4m3fn), torch.tensor(2.0))
    assert torch.equal(arrays["scale"], scale) and arrays["global"].tolist() == [2.0]


def test_by_name_makes_every_format() -> None:
    assert [by_name(fmt.name) for fmt in FORMATS] == list(FORMATS)
    assert by_name("int8", group=64, scale_dtype="bfloat16") == Int8(group=64, scale_dtype=torch.bfloat16)
    int4: Any = by_name("int4")
    assert by_name("int4", asymmetric=True, group=32) == replace(int4, asymmetric=True, group=32)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("int5", {}, "bf16, int8, int4"),
        ("int8", {"groups": 32}, "group, scale_dtype"),
        ("nf4", {"group": 32}, "none"),
        ("int8", {"scale_dtype": "float8"}, "float16, bfloat16, float32"),
        ("int4", {"group": 48}, "32, 64 or 128"),
        ("int8", {"scale_dtype": torch.float64}, "float16"),
    ],
)
def test_by_name_says_what_there_is(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=LINE) as caught:
        by_name(name, **options)
    assert said in str(caught.value)
