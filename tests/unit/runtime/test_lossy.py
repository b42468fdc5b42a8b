"""What each lossy mode leaves of a routing, against plain loops over tokens and ranks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.runtime.lossy import LowPrecision, Skip, Substitute
from tests.lossy_oracle import skipped, substituted

EXPERTS, HIDDEN = 8, 5


def routing(tokens: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ids, weights in falling order, residents, router rows)."""
    random = np.random.default_rng(seed)
    ids_TK = np.stack([random.permutation(EXPERTS)[:k] for _ in range(tokens)]).astype(np.int64)
    weights_TK = -np.sort(-random.random((tokens, k)).astype(np.float32), axis=1)
    return ids_TK, weights_TK, random.random(EXPERTS) < random.random(), random.standard_normal((EXPERTS, HIDDEN))


CASES = given(
    st.integers(1, 6), st.integers(2, 4), st.floats(0, 1), st.sampled_from(("largest", "sum")), st.integers(0, 9999)
)


@CASES
def test_skipping_as_plain_loops(tokens: int, k: int, threshold: float, relative: str, seed: int) -> None:
    ids_TK, weights_TK, resident_E, _ = routing(tokens, k, seed)
    for hits in (False, True):
        expected_TK = skipped(ids_TK, weights_TK, resident_E, threshold, relative, hits)
        made = Skip(threshold, relative, hits).reroute(0, ids_TK, weights_TK, resident_E)
        assert (ids_TK if made is None else made.ids_TK).tolist() == expected_TK.tolist()
        if made is not None:
            assert (made.changed_TK == (expected_TK < 0)).all() and made.changed_TK.any()
        if not hits:
            low = LowPrecision(threshold, relative).reroute(0, ids_TK, weights_TK, resident_E)
            assert (low is None) == (made is None)
            assert low is None or made is None or (low.ids_TK == made.ids_TK).all()


@CASES
def test_substituting_as_plain_loops(tokens: int, k: int, threshold: float, relative: str, seed: int) -> None:
    ids_TK, weights_TK, resident_E, router_ED = routing(tokens, k, seed)
    similarity = float(np.random.default_rng(seed).uniform(-1, 0.9))
    for only in (None, threshold):
        mode = Substitute(similarity, only, relative)
        mode.prepare([router_ED], k)
        expected_TK = substituted(ids_TK, weights_TK, resident_E, router_ED, similarity, only, relative)
        made = mode.reroute(0, ids_TK, weights_TK, resident_E)
        got_TK = ids_TK if made is None else made.ids_TK
        assert got_TK.tolist() == expected_TK.tolist()
        assert all(len(set(row)) == k for row in got_TK.tolist())  # never one expert twice for a token
        assert resident_E[got_TK[got_TK != ids_TK]].all()


def test_the_first_expert_stays() -> None:
    ids_TK, weights_TK, _, _ = routing(20, 4, 0)
    made = Skip(1.0, "sum").reroute(0, ids_TK, weights_TK, np.zeros(EXPERTS, bool))
    assert made is not None and not made.changed_TK[:, 0].any()
    even_TK = np.full_like(
        weights_TK, 0.25
    )  # of equal weights the first: none is below 1 of the largest, all are of the sum
    assert Skip(1.0, hits=True).reroute(0, ids_TK, even_TK, np.zeros(EXPERTS, bool)) is None
    made = Skip(1.0, "sum", hits=True).reroute(0, ids_TK, even_TK, np.zeros(EXPERTS, bool))
    assert made is not None and made.changed_TK[:, 1:].all() and not made.changed_TK[:, 0].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Skip(1.5), r"lossy\.threshold: got 1\.5"),
        (lambda: Skip(float("nan")), r"lossy\.threshold: got nan"),
        (lambda: Skip(relative="mean"), r"lossy\.relative: got 'mean'"),
        (lambda: LowPrecision(-0.1), r"lossy\.threshold"),
        (lambda: LowPrecision(format="nf4"), r"lossy\.format: got 'nf4'"),
        (lambda: Substitute(-1.5), r"lossy\.similarity: got -1\.5"),
        (lambda: Substitute(float("nan")), r"lossy\.similarity: got nan"),
        (lambda: Substitute(threshold=2.0), r"lossy\.threshold"),
        (lambda: Skip().prepare([], 1), "one expert a token"),
        (lambda: LowPrecision().prepare([], 1), "one expert a token"),
        (lambda: Substitute(threshold=0.5).prepare([], 1), "one expert a token"),
        (lambda: Substitute().prepare([None], 2), "no row an expert"),
    ],
)
def test_mistakes_are_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_substituting_a_models_only_expert_is_fine() -> None:
    Substitute(threshold=None).prepare([np.eye(3)], 1)
