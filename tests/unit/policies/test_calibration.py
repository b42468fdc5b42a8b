"""What policies learn from a calibration trace, token by token."""

import numpy as np
import pytest

from rgpu.errors import TraceError
from rgpu.policies import fading
from rgpu.policies.calibration import activation_maps, domain_rows, mean_inputs, routing_vectors
from rgpu.policies.reuse import reuse_samples
from rgpu.traces.trace import Trace
from tests.support import routed_trace, trace_of

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


def test_an_expert_routed_to_once_has_that_token_s_input() -> None:
    trace = trace_of([(0,), (1,), (1,), (2,)], 4)
    trace.hidden = np.array([[1, 0], [0, 1], [0, 3], [2, 2]], np.float16)[:, None]
    rows = np.array([[1, 0], [0, 2], [2, 2]]) - [0.75, 1.5]
    found = mean_inputs(trace, 0, "hidden")
    np.testing.assert_allclose(found[:3], rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-12)
    assert not found[3].any()
    assert activation_maps(trace_of([(2,)], 4)).tolist() == [[[0, 0, 1, 0]]]


@pytest.mark.parametrize("half_life", [1, 8])
def test_moments_are_sums_over_all_decisions_whose_answer_is_known(half_life: int) -> None:
    trace, cap = routed_trace(8, tokens=40, layers=2), 6
    assert trace.weights is not None
    needed, total, moments = reuse_samples(trace, half_life, 3, cap)
    even = fading.even_share(2, EXPERTS, half_life)
    for layer in range(2):
        rows, asked, found = [], np.zeros_like(total[layer]), np.zeros_like(total[layer])
        for a, b in zip(trace.seq_offsets[:-1], trace.seq_offsets[1:], strict=True):
            ids, weights = trace.expert_ids[a:b, layer], trace.weights[a:b, layer].astype(float)
            for t in range(b - a):
                for key in set(ids[:t].ravel().tolist()) - set(ids[t].tolist()):
                    past = [u for u in range(t) if key in ids[u]]
                    coming = [u for u in range(t, b - a) if key in ids[u]]
                    uses = sum(2.0 ** ((u - past[-1]) / half_life) for u in past)
                    count = np.floor(np.log2(uses)) + uses / 2.0 ** np.floor(np.log2(uses)) - 1
                    weight = weights[past[-1]][ids[past[-1]] == key][0]
                    if coming or b - a - 1 - t >= 3:
                        cell = fading.use_bucket(count, even), fading.age_bucket(t - past[-1])
                        asked[cell] += 1
                        found[cell] += bool(coming) and coming[0] - t <= 3
                    if not coming and b - a - 1 - t < cap:
                        continue
                    away = min(coming[0] - t, cap) if coming else cap
                    rows.append([np.floor(np.log2(t - past[-1])), count, weight, 1, np.log2(away)])
        np.testing.assert_allclose(moments[layer], np.transpose(rows) @ np.array(rows), rtol=1e-6, atol=1e-9)
        assert (total[layer] == asked).all() and (needed[layer] == found).all()


def test_few_experts_have_all_moments() -> None:
    moments = reuse_samples(trace_of([(0,), (1,), (1,), (0,)], 2), 8, 1, 9)[2][0]
    assert moments[3].tolist() == pytest.approx([1, 0, 2, 2, 1])  # 0 waits for 2 passes, then for 1
