import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.predictors.base import speaking_rows
from rgpu.predictors.hidden import BLOCK, fixed_matmul, top_k_share


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 70), st.integers(1, 40))
def test_a_row_does_not_depend_on_its_company(seed: int, rows: int, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    x_ND, w_DM = (rng.normal(size=s).astype(np.float32) for s in ((rows, inputs), (inputs, outputs)))
    together = fixed_matmul(x_ND, w_DM)
    alone = np.concatenate([fixed_matmul(x_ND[n : n + 1], w_DM) for n in range(rows)])
    assert np.array_equal(together, alone)
    assert np.array_equal(top_k_share(together[:, None], 2)[:1], top_k_share(alone[:1, None], 2))


def test_sums_in_order_in_float32() -> None:
    rng = np.random.default_rng(0)
    x_ND, w_DM = (rng.normal(size=s).astype(np.float32) for s in ((3, 50), (50, 4)))
    total = np.zeros((3, 4), np.float32)
    for d in range(50):
        total += x_ND[:, d, None] * w_DM[d]
    assert np.array_equal(fixed_matmul(x_ND, w_DM), total)


def test_many_rows_and_narrow_inputs() -> None:
    rng = np.random.default_rng(1)
    x_ND, w_DM = (rng.normal(size=s).astype(np.float16) for s in ((2 * BLOCK + 3, 7), (7, 5)))
    wide_DM = w_DM.astype(np.float32)
    y_NM = fixed_matmul(x_ND, wide_DM)
    assert np.allclose(y_NM, x_ND.astype(np.float64) @ wide_DM, atol=1e-5)
    assert np.array_equal(y_NM[-1:], fixed_matmul(x_ND[-1:], wide_DM))
    assert fixed_matmul(x_ND[:0], wide_DM).shape == (0, 5)


@pytest.mark.parametrize(
    ("phase", "rows"),
    [
        (None, [3]),
        ([0, 0, 0, 0], [3]),
        ([0, 0, 2, 2], [1]),
        ([1, 2, 1, 1], [0, 2, 3]),
        ([0, 1, 0, 0], [1]),
        ([2, 2, 2, 2], []),
    ],
)
def test_speaking_rows(phase: list[int] | None, rows: list[int]) -> None:
    assert speaking_rows(None if phase is None else np.array(phase, np.uint8), 4).tolist() == rows
