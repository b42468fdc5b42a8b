"""Routing statistics: against slow loops on small traces, and against published values of a real one."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rgpu.traces import stats
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import PADDING, Trace

SHARED = Path(os.environ.get("RGPU_SHARED", Path(__file__).parents[4] / "shared")) / "traces"


def test_reuse_and_counts_equal_a_slow_loop(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace(lengths=(9, 4, 1, 6), experts=5)
    trace.expert_ids[3, 1, 1] = trace.missing
    assert trace.phase is not None
    phase_N = trace.phase
    phase_N[11] = PADDING

    def row(token: int, layer: int) -> list[int]:
        return [] if phase_N[token] == PADDING else [e for e in trace.expert_ids[token, layer] if e != trace.missing]

    expected = np.zeros((trace.layers, 5), int)
    for layer in range(trace.layers):
        for token in range(trace.tokens):
            for expert in row(token, layer):
                expected[layer, expert] += 1
    assert np.array_equal(stats.counts(trace), expected)
    for lag in (1, 3):
        for layer in range(trace.layers):
            same = total = 0
            for a, b in zip(trace.seq_offsets[:-1], trace.seq_offsets[1:], strict=True):
                for token in range(a + lag, b):
                    before, now = row(token - lag, layer), row(token, layer)
                    if before:
                        same, total = same + len(set(now) & set(before)), total + len(now)
            assert stats.reuse(trace, [lag])[0, layer] == pytest.approx(same / total)
    assert np.isnan(stats.reuse(trace, [20])).all()


def test_popularity_extremes() -> None:
    share_LE = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0]])
    assert stats.normalised_entropy(share_LE) == pytest.approx([1, 0])
    assert stats.top_share(share_LE) == pytest.approx([0.25, 1])
    assert stats.independence(share_LE, 2) == pytest.approx([0.5, 2])


def test_by_sequence(make_trace: Callable[..., Trace]) -> None:
    assert stats.by_sequence(make_trace(), np.ones(13)).tolist() == [5, 1, 7]


def test_published_values_of_a_real_trace() -> None:
    path = SHARED / "gpt-oss-20b_decode_mixedqa_w.npz"
    if not path.exists():
        pytest.skip(f"no {path}; set RGPU_SHARED")
    trace, told = load_trace(path), json.loads(path.with_suffix(".json").read_text())["stats"]
    share_LE, reuse = stats.popularity(trace), stats.reuse(trace, [1, 2, 4, 8])
    layers = told["per_layer"]
    assert stats.normalised_entropy(share_LE) == pytest.approx(layers["norm_entropy"], abs=6e-5)
    assert stats.top_share(share_LE) == pytest.approx(layers["top25pct_share"], abs=6e-5)
    assert reuse[0] == pytest.approx(layers["adj_overlap"], abs=6e-5)
    assert reuse.mean(1) == pytest.approx(list(told["lag_overlap"].values()), abs=1e-9)
    assert stats.independence(share_LE, 4).mean() == pytest.approx(told["adj_overlap_if_independent"], abs=1e-9)
