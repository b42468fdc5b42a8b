"""Row groups come in the order of transformers' eager forward."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rgpu.runtime.compute import row_groups


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
