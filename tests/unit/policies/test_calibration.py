"""What policies learn from a calibration trace, token by token."""

import numpy as np
import pytest

from rgpu.errors import TraceError
from rgpu.policies.calibration import activation_maps, domain_rows, mean_inputs, routing_vectors
from rgpu.traces.trace import Trace
from tests.support import routed_trace

EXPERTS = 8


def gappy(seed: int) -> Trace:
    """A trace in which some choices are missing."""
    trace = routed_trace(seed, tokens=30, sequences=3, top_k=3)
    rng = np.random.default_rng(seed)
    trace.expert_ids[rng.random(trace.expert_ids.shape) < 0.2] = trace.missing
    trace.expert_ids[trace.seq_offsets[1] : trace.seq_offsets[2], 1] = trace.missing  # nothing ran here
    return trace


@pytest.mark.parametrize("weighted", [True, False])
def test_routing_vectors_hold_the_weight_of_each_choice(weighted: bool) -> None:
    trace = gappy(1)
    if not weighted:
        trace.weights = None
    found = routing_vectors(trace, 1, slice(2, 25))
    assert found.shape == (23, EXPERTS)
    for row, t in zip(found, range(2, 25), strict=True):
        wanted = np.zeros(EXPERTS)
        for k, e in enumerate(trace.expert_ids[t, 1]):
            if e != trace.missing:
                wanted[e] = trace.weights[t, 1, k] if trace.weights is not None else 1 / 3
        np.testing.assert_allclose(row, wanted, rtol=1e-6)


@pytest.mark.parametrize("feature", ["hidden", "routing"])
@pytest.mark.parametrize("chunk", [1, 7, 8192])
def test_mean_inputs_are_centred_means_of_length_one(feature: str, chunk: int) -> None:
    trace = gappy(2)
    trace.expert_ids[trace.expert_ids == 5] = 4  # nothing goes to expert 5
    for layer in range(2):
        routing = routing_vectors(trace, layer, slice(None)).astype(float)
        x = routing if feature == "routing" else trace.hidden[:, layer].astype(float)  # type: ignore[index]
        found = mean_inputs(trace, layer, feature, chunk)
        for e in range(EXPERTS):
            mine = [x[t] for t in range(trace.tokens) if routing[t, e] > 0]
            wanted = np.mean(mine, 0) - x.mean(0) if mine else np.zeros(x.shape[1])
            assert bool(mine) == (e != 5)
            np.testing.assert_allclose(found[e], wanted / (np.linalg.norm(wanted) or 1.0), atol=1e-9)
    with pytest.raises(TraceError, match="empty split"):
        mean_inputs(trace.select(np.zeros(0, np.int64)), 0, feature)


def test_activation_maps_are_shares_of_the_uses_of_a_layer() -> None:
    trace = gappy(3)
    maps = activation_maps(trace)
    assert maps.shape == (3, 2, EXPERTS)
    for s in range(3):
        for layer in range(2):
            ids = trace.expert_ids[trace.seq_offsets[s] : trace.seq_offsets[s + 1], layer].ravel().tolist()
            ids = [e for e in ids if e != trace.missing]
            wanted = [ids.count(e) / max(1, len(ids)) for e in range(EXPERTS)]
            np.testing.assert_allclose(maps[s, layer], wanted)
            assert bool(ids) == ((s, layer) != (1, 1))


def test_rows_of_a_domain_are_those_of_its_sequences() -> None:
    trace = routed_trace(4, tokens=31, sequences=3)
    for meta, name in zip(trace.header.sequences, ("code", "prose", "code"), strict=True):
        meta["domain"] = name
    wanted = np.zeros(31, bool)
    for s in (0, 2):
        wanted[trace.seq_offsets[s] : trace.seq_offsets[s + 1]] = True
    assert domain_rows(trace, "code", "static_hot").tolist() == wanted.tolist()
    with pytest.raises(TraceError, match="domains code, prose in"):
        domain_rows(trace, "law", "static_hot")
    for meta in trace.header.sequences:
        del meta["domain"]
    with pytest.raises(TraceError, match="domains none in"):
        domain_rows(trace, "law", "static_hot")
