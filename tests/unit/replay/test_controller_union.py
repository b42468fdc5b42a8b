"""One token's event takes a short way to its union, and everything resident a short way to its waves: to the same ends."""

import numpy as np
import pytest

from rgpu.policies.loop import BYPASS, HIT, PREFETCH_HIT
from rgpu.replay.controller import MISSING
from rgpu.replay.decision import split_waves
from rgpu.replay.events import union_of, union_of_one

E = 12


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("k", (1, 2, 5, E))
def test_union_of_one_token(k: int, weighted: bool, reverse: bool) -> None:
    draw = np.random.default_rng(k)
    for _ in range(20):
        ids_TK = draw.permutation(E)[:k].astype(np.int16)[None]
        weights_TK = draw.random((1 if weighted else 0, k)).astype(np.float32)
        keys, mass, touch = np.empty(k, np.int32), np.empty(k, np.float32), np.empty(k if reverse else 0, np.int32)
        scratch = np.zeros(E, np.int64), np.zeros(E, np.float32), np.zeros(E, np.int64)
        n, _ = union_of(ids_TK, weights_TK, E, MISSING, reverse, 1, *scratch, keys, mass, touch)
        assert n == k
        for ours, theirs in zip(union_of_one(ids_TK[0], weights_TK, reverse), (keys, mass, touch), strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.tolist() == theirs.tolist()


def test_waves() -> None:
    def waves(*codes: int) -> list[list[int]]:
        slots = [code if code >= 0 else -1 if code == BYPASS else at for at, code in enumerate(codes)]
        return [wave.tolist() for wave in split_waves(np.array(codes, np.int32), np.array(slots, np.int32), 1)]

    assert waves(HIT, PREFETCH_HIT, HIT) == [[0, 1, 2]]
    assert waves() == []
    assert waves(HIT, BYPASS, HIT, BYPASS) == [[0, 2], [1], [3]]
    assert waves(BYPASS, BYPASS) == [[0], [1]]
    assert waves(HIT, 1, HIT) == [[0, 2, 1]]
    assert waves(HIT, 2, HIT) == [[0, 2], [1]]
