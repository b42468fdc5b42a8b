"""Row groups come in the order of transformers' eager forward; one token needs none."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rgpu.runtime.compute import FloatCompute, row_groups, threads
from rgpu.store.layout import ExpertLayout


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 10_000))
def test_row_groups_as_eager(tokens: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    ids_TK = np.stack([random.permutation(6)[:k] for _ in range(tokens)]).astype(np.int16)
    mask = torch.nn.functional.one_hot(torch.from_numpy(ids_TK.astype(np.int64)), 7).permute(2, 1, 0)
    groups = row_groups(ids_TK)
    assert sorted(groups) == sorted(set(ids_TK.reshape(-1).tolist()))
    for expert, (token_N, rank_N) in groups.items():
        eager_rank, eager_token = torch.where(mask[expert])
        assert torch.equal(token_N, eager_token)
        assert torch.equal(rank_N, eager_rank)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("count", (1, 2))
def test_one_token_as_many(dtype: torch.dtype, count: int) -> None:
    """One token's short way gives what the way of many tokens gives, and leaves torch's threads as they were."""
    layout = ExpertLayout(16, 32, dtype)
    rows_SB = torch.zeros(5, layout.stride, dtype=torch.uint8)
    torch.manual_seed(0)
    for row in rows_SB:
        for values in layout.views(row)[:2]:
            values.copy_(torch.randn(values.shape))
    module: Any = SimpleNamespace(apply_gate=lambda both: torch.nn.functional.silu(both[:, :16]) * both[:, 16:])
    x_TD, weights_TK = torch.randn(1, 32).to(dtype), torch.rand(1, 3).to(dtype)
    ids_TK = np.array([[4, 0, 2]], np.int16)
    made = []
    with threads(count):
        for short in (True, False):
            compute = FloatCompute(layout)
            compute.begin(module, x_TD, ids_TK, weights_TK)
            if not short:
                compute._one, compute._groups = False, row_groups(ids_TK)
            compute.members(rows_SB, [(2, 3)])
            compute.members(rows_SB, [(4, 0), (0, 1)])
            made.append(compute.finish())
            assert torch.get_num_threads() == count
    assert made[0].dtype == dtype and made[0].abs().sum() > 0
    assert torch.equal(*made)
