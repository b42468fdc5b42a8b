"""The compiled linear map against the predictors' numpy reference: the same bits, for any shape and number of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.kernels.linear_forecast import linear_forecast, scaled
from rgpu.predictors import hidden
from rgpu.predictors.hidden import BLOCK, linear_reference


def bits(array: np.ndarray) -> list[int]:
    assert array.dtype == np.float32
    found: list[int] = array.view(np.int32).ravel().tolist()
    return found


@given(
    rows=st.integers(0, 5), inputs=st.integers(1, 70), outputs=st.integers(1, 70), scale=st.sampled_from((1e-36, 1, 1e30)),
    half=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_bits_of_the_reference(rows: int, inputs: int, outputs: int, scale: float, half: bool, seed: int) -> None:
    """Products of tiny values are subnormal, which nothing may flush, and a fused multiply-add would show in any of them."""
    rng = np.random.default_rng(seed)
    x_ND: np.ndarray = rng.normal(size=(rows, inputs)).astype(np.float16 if half else np.float32)
    weight_DM = (rng.normal(size=(inputs, outputs)) * scale).astype(np.float32)
    weight_DM[rng.random(weight_DM.shape) < 0.1] = -0.0
    bias_M = rng.normal(size=outputs).astype(np.float32)
    if scale < 1:
        bias_M *= 0
        x_ND = np.ldexp(x_ND, -14)
    assert bits(linear_forecast(x_ND, weight_DM, bias_M)) == bits(linear_reference(x_ND, weight_DM, bias_M))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 256, 320), (1, 2048, 640), (BLOCK + 2, 256, 40)])
def test_real_sizes(rows: int, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(inputs)
    x_ND, weight_DM, bias_M = (
        rng.normal(size=size).astype(np.float32) for size in ((rows, inputs), (inputs, outputs), outputs)
    )
    assert bits(linear_forecast(x_ND, weight_DM, bias_M)) == bits(linear_reference(x_ND, weight_DM, bias_M))


@given(
    rows=st.integers(0, 5), inputs=st.integers(1, 300), size=st.sampled_from((1e-20, 1e-3, 1, 1e4)),
    tiny=st.sampled_from((1e-6, 1e-5)), half=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_bits_of_scaled_inputs(rows: int, inputs: int, size: float, tiny: float, half: bool, seed: int) -> None:
    """Squares are summed in order, which a sum in pairs or in vector lanes would not match."""
    rng = np.random.default_rng(seed)
    x_ND: np.ndarray = (rng.normal(size=(rows, inputs)) * size).astype(np.float16 if half else np.float32)
    weight_DM, bias_M = (rng.normal(size=s).astype(np.float32) for s in ((inputs, 9), 9))
    found, apart = linear_forecast(x_ND, weight_DM, bias_M, tiny), scaled(x_ND, tiny)
    assert bits(apart) == bits(hidden.scaled(x_ND, tiny))
    assert bits(found) == bits(linear_reference(x_ND, weight_DM, bias_M, tiny))
    assert bits(found) == bits(linear_forecast(apart, weight_DM, bias_M))


def test_rows_that_do_not_lie_together() -> None:
    rng = np.random.default_rng(0)
    whole_ND, weight_DM = (rng.normal(size=size).astype(np.float32) for size in ((6, 40), (20, 12)))
    part_ND = whole_ND[::2, ::2]
    bias_M = np.zeros(12, np.float32)
    assert bits(linear_forecast(part_ND, weight_DM, bias_M)) == bits(linear_reference(part_ND, weight_DM, bias_M))


def test_shapes_that_do_not_fit() -> None:
    weight_DM, bias_M = np.zeros((4, 3), np.float32), np.zeros(3, np.float32)
    with pytest.raises(AssertionError):
        linear_forecast(np.zeros((1, 5), np.float32), weight_DM, bias_M)
    with pytest.raises(AssertionError):
        linear_forecast(np.zeros((1, 4), np.float32), weight_DM, bias_M[:2])
