"""The quantisers: error bounds, agreement with the libraries that share their convention, and the edges of the dtypes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.quant.int4 import Int4
from rgpu.quant.int4_fit import fit
from rgpu.quant.int8 import Int8
from rgpu.quant.mxfp4 import Mxfp4
from tests.unit.quant.samples import case_id

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INT4 = tuple(Int4(g, asymmetric, dtype) for g in (32, 64) for asymmetric in (False, True) for dtype in SCALE_DTYPES)
INT8 = tuple(Int8(g, dtype) for g in (0, 32) for dtype in SCALE_DTYPES)
ROUNDED: tuple[Any, ...] = (*INT4, *INT8)
QUANTISERS: list[Any] = [
    *[pytest.param(fmt, fmt.quantize, id=f"{case_id(fmt)}-{fmt.scale_dtype}") for fmt in ROUNDED],
    *[pytest.param(fmt, lambda w, fmt=fmt: fit(fmt, w), id=f"fit-{case_id(fmt)}-{fmt.scale_dtype}") for fmt in INT4],
    pytest.param(Mxfp4(), Mxfp4().quantize, id="mxfp4"),
]


def weights(seed: int, rows: int = 4, cols: int = 128, exponent: float = 0.0) -> torch.Tensor:
    """Gaussian numbers times 10**exponent, some columns far larger, one row one-sided, one group zero."""
    rng = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, cols, generator=rng) * 10.0**exponent
    made[:, ::17] *= 8
    made[0] = made[0].abs()
    made[-1, -64:] = 0
    return made


def squared_error(fmt: Any, arrays: Any, weight: torch.Tensor) -> torch.Tensor:
    """Of every group, float64 [N, G]."""
    error = (fmt.unpack(arrays).double() - weight.double()).square()
    return error.reshape(weight.shape[0], -1, fmt.group or weight.shape[1]).sum(-1)


@pytest.mark.parametrize(
    "fmt", (*INT8, *(f for f in INT4 if not f.asymmetric)), ids=lambda f: f"{case_id(f)}-{f.scale_dtype}"
)
@given(seed=st.integers(0, 2**31), exponent=st.floats(-9, 4))
@settings(max_examples=25, deadline=None)
def test_symmetric_rounding_errs_by_half_a_step(fmt: Any, seed: int, exponent: float) -> None:
    """Half a step, and what the rounding of the scale itself clips: steps of half the range times half a unit."""
    weight = weights(seed, exponent=exponent)
    arrays = fmt.quantize(weight)
    step = arrays["scale"].double().repeat_interleave(fmt.group or 128, 1)
    clipped = (2**fmt.bits - 1) / 2 * torch.finfo(fmt.scale_dtype).eps / 2
    assert bool(((fmt.unpack(arrays).double() - weight).abs() <= step * (0.5 + clipped + 1e-4)).all())


@pytest.mark.parametrize("fmt", [f for f in INT4 if f.asymmetric], ids=lambda f: f"{case_id(f)}-{f.scale_dtype}")
@given(seed=st.integers(0, 2**31), exponent=st.floats(-9, 4))
@settings(max_examples=25, deadline=None)
def test_asymmetric_rounding_errs_by_a_step(fmt: Any, seed: int, exponent: float) -> None:
    weight = weights(seed, exponent=exponent)
    arrays = fmt.quantize(weight)
    step = arrays["scale"].double().repeat_interleave(fmt.group, 1)
    assert bool(((fmt.unpack(arrays).double() - weight).abs() <= step * (1 + 15 * 2.0**-9)).all())


@pytest.mark.parametrize("fmt", INT4, ids=lambda f: f"{case_id(f)}-{f.scale_dtype}")
@given(seed=st.integers(0, 2**31), exponent=st.floats(-9, 4), special=st.sampled_from(("", "one", "two", "constant")))
@settings(max_examples=25, deadline=None)
def test_the_fit_is_never_worse_than_rounding(fmt: Int4, seed: int, exponent: float, special: str) -> None:
    weight = weights(seed, exponent=exponent)
    if special == "constant":
        weight = torch.full_like(weight, float(weight[0, 0]))
    elif special:
        weight[:, 2 if special == "two" else 1 :] = 0
    fitted, rounded = fit(fmt, weight), fmt.quantize(weight)
    assert bool((squared_error(fmt, fitted, weight) <= squared_error(fmt, rounded, weight)).all())


@pytest.mark.parametrize("fmt", INT4[::3], ids=case_id)
def test_the_fit_comes_near_the_best_of_a_fine_grid(fmt: Int4) -> None:
    """Every sixteenth of a percent of a scale, both signs, every zero point: the fit's error is within 2 % of the best."""
    weight = torch.randn(64, fmt.group, generator=torch.Generator().manual_seed(7))
    mine = float(squared_error(fmt, fit(fmt, weight), weight).sum())
    rounded = float(squared_error(fmt, fmt.quantize(weight), weight).sum())
    best = torch.full((64,), torch.inf)
    whole = weight.abs().amax(-1, keepdim=True) / 7.5
    for ratio in np.linspace(-1.3, 1.3, 416):
        scale = (whole * ratio).half().float()
        for zero in range(16) if fmt.asymmetric else (8,):
            steps = ((weight / scale).round() + zero).clamp(0, 15) - zero
            best = torch.minimum(best, (steps * scale - weight).square().sum(-1))
    assert float(best.sum()) * (1 - 1e-3) <= mine <= float(best.sum()) * 1.02 < rounded


@pytest.mark.parametrize(("fmt", "quantise"), QUANTISERS)
def test_zeros_stay_zeros_and_weights_that_are_not_finite_are_refused(fmt: Any, quantise: Any) -> None:
    assert not fmt.unpack(quantise(torch.zeros(3, 128))).any()
    for bad in (torch.nan, torch.inf, -torch.inf):
        weight = weights(0)
        weight[1, 5] = bad
        with pytest.raises(InputError, match=r"^[^\n]*not finite; expected[^\n]*$"):
            quantise(weight)
    for wrong in (torch.zeros(128), torch.zeros(3, 128, dtype=torch.int32), torch.zeros(3, 100)):
        with pytest.raises(InputError, match=r"^[^\n]*got [^\n]*expected [^\n]*$"):
            quantise(wrong)


@pytest.mark.parametrize(("fmt", "quantise"), QUANTISERS)
@pytest.mark.parametrize("largest", (1e-44, 1e-30, 1e-7, 3e-5, 1e5, 1e20, 3.4e38))
def test_any_finite_weight_is_stored_well_or_refused(fmt: Any, quantise: Any, largest: float) -> None:
    """Beyond the scales' range there is an error; below it numbers lose precision, by at most a step of the dtype."""
    weight = torch.linspace(0, 1, 256).reshape(2, 128) * torch.tensor([1.0, -1.0]).repeat(64) * largest
    dtype = getattr(fmt, "scale_dtype", torch.bfloat16)
    if largest / 127 > torch.finfo(dtype).max or (largest > 3e38 and fmt.name != "mxfp4"):  # -8 steps leave float32
        with pytest.raises(InputError, match=r"^[^\n]*need a scale of [^\n]*expected at most [^\n]*$"):
            quantise(weight)
        return
    numbers = fmt.unpack(quantise(weight)).double()
    smallest = 2.0**-128 if fmt.name == "mxfp4" else torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert bool(numbers.isfinite().all())
    assert float((numbers - weight.double()).abs().max()) <= max(largest / 3.4, smallest)


@pytest.mark.parametrize("fmt", INT4[::3], ids=case_id)
def test_rows_quantise_alone(fmt: Int4) -> None:
    """More groups than the fit takes at a time: each row comes out as it does by itself."""
    weight = weights(3, rows=1 << 14, cols=4 * fmt.group)
    whole = fmt.unpack(fit(fmt, weight))
    for row in (0, 1 << 13, (1 << 14) - 1):
        assert torch.equal(whole[row], fmt.unpack(fit(fmt, weight[row : row + 1]))[0])


@pytest.mark.parametrize("fmt", (Int8(0), Int8(32), Int4(32), Int4(32, True)), ids=case_id)
def test_rounding_is_compressed_tensors_s(fmt: Any) -> None:
    """Same scales (float16) and, with them, the same codes: its ranges are -128..127 and -8..7, asymmetric too."""
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    arguments = pytest.importorskip("compressed_tensors.quantization").QuantizationArgs
    weight = weights(5, rows=32, cols=512)[:-1]  # its all-zero group has a scale of eps there
    asymmetric = getattr(fmt, "asymmetric", False)
    shape = {"strategy": "group", "group_size": fmt.group} if fmt.group else {"strategy": "channel"}
    args = arguments(num_bits=fmt.bits, symmetric=not asymmetric, **shape)
    groups = weight.reshape(31, -1, fmt.group or 512)
    scale, zero = helpers.calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale, zero = scale.half().float(), zero if asymmetric else None
    theirs = forward.quantize(weight, scale, zero, args)
    arrays = fmt.quantize(weight)
    assert torch.equal(arrays["scale"].float(), scale)
    assert torch.equal(fmt.codes(arrays).int() - 2 ** (fmt.bits - 1), theirs.int())


def test_mxfp4_rounds_ties_to_even_and_saturates() -> None:
    sizes = [0.2, 0.25, 0.3, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 6.0, 6.9, 7.99, 4.0]
    wanted = [0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 6.0, 6.0, 4.0]
    weight = torch.zeros(1, 32)
    weight[0, :14], weight[0, 14:28] = torch.tensor(sizes), -torch.tensor(sizes)
    for power in (-20, 0, 30):
        numbers = Mxfp4().unpack(Mxfp4().quantize(weight * 2.0**power)) * 2.0**-power
        assert numbers[0].tolist() == [*wanted, *(-number for number in wanted), 0.0, 0.0, 0.0, 0.0]


@given(seed=st.integers(0, 2**31), exponent=st.floats(-30, 30))
@settings(max_examples=50, deadline=None)
def test_mxfp4_quantises_as_gguf_does(seed: int, exponent: float) -> None:
    """Same scales and, away from ties, same numbers: no Gaussian weight lies in the middle between two codes."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.MXFP4
    weight = weights(seed, exponent=exponent)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    assert np.array_equal(Mxfp4().unpack(Mxfp4().quantize(weight)).numpy(), theirs)
