"""Predictors of what the sequence has used so far: its own popularity, its domain's, that of sequences like it."""

from dataclasses import replace

import numpy as np
import pytest

from rgpu.errors import InputError, TraceError
from rgpu.predictors.popularity import popularity
from rgpu.predictors.popularity_domain import PopularityDomain, blended
from rgpu.predictors.popularity_prefix import STRENGTHS, PopularityPrefix
from rgpu.predictors.running import before_pass, map_counts
from rgpu.predictors.similar_sequences import SimilarSequences
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent
from tests.predicting import LAYERS, choices, learnable_trace, recall_at_k, routing_trace


def kinds(seed: int = 3, sequences: int = 12, length: int = 40) -> Trace:
    """Sequences of three kinds (domains a, b, c), each with four experts of its own at every layer."""
    rng = np.random.default_rng(seed)
    ids, domains = [], []
    for s in range(sequences):
        own = np.random.default_rng(100 + s % 3).permuted(np.tile(np.arange(12), (2, 1)), axis=1)[:, :4]
        ids.append(np.stack([own[layer][choices(rng, length, 4, 2)] for layer in range(2)], axis=1))
        domains.append("abc"[s % 3])
    return routing_trace(np.concatenate(ids), 12, length, domains=domains)


@pytest.mark.parametrize("kind", [PopularityPrefix, PopularityDomain, SimilarSequences])
def test_each_finds_out_what_a_sequence_uses(kind: type[PopularityPrefix]) -> None:
    trace, new = kinds(), kinds(seed=8)
    recall = recall_at_k(kind(horizon=1).fit(trace), new)
    # two of four experts, once the four are known
    assert recall[0] > 0.44 and recall[1] > 0.44


def test_the_prefix_is_counted_prompt_and_all() -> None:
    trace = learnable_trace()
    predictor = PopularityPrefix(horizon=1, strength=2.0).fit(trace)
    prompt = np.array([[0, 1], [0, 2], [7, 7]], np.int16)
    predictor.observe(RoutingEvent(0, 0, prompt, phase_T=np.array([0, 0, 2], np.uint8)))  # its last row is padding
    later, following = predictor.predict().probs_HE
    popular = popularity(trace)
    assert np.allclose(later, popular[1])
    assert np.allclose(following, (np.array([2, 1, 1, 0, 0, 0, 0, 0]) + 2 * popular[0]) / 4)


def test_strength_is_chosen_on_calibration() -> None:
    steady, varied = routing_trace(choices(np.random.default_rng(0), 800, 8, 2)[:, None], 8, 80), kinds()
    assert PopularityPrefix().fit(steady).tensors_["strength"][0] == STRENGTHS[-1]  # no sequence is special
    assert PopularityPrefix().fit(varied).tensors_["strength"][0] <= 16
    assert PopularityPrefix(strength=3.0).fit(varied).tensors_["strength"][0] == 3
    with pytest.raises(InputError, match="strength 0"):
        PopularityPrefix(strength=0.0).fit(varied)


def test_a_domain_is_told_by_what_was_routed() -> None:
    trace = kinds()
    predictor = PopularityDomain(horizon=1, evidence=1.0).fit(trace)
    own = predictor.tensors_["chance_GLE"]
    for domain in range(3):
        predictor.reset()
        for number in range(4):
            for layer in range(2):
                predictor.observe(
                    RoutingEvent(layer, number, trace.expert_ids[40 * domain + number, layer][None].astype(np.int16))
                )
        assert np.allclose(predictor.predict().probs_HE[0], own[domain, 1], atol=0.02)
    assert np.allclose(own.sum(2), 2, atol=1e-4)


def test_without_evidence_a_domain_is_as_likely_as_in_calibration() -> None:
    trace = kinds()
    predictor = PopularityDomain(horizon=1, evidence=0.0).fit(trace)
    predictor.observe(RoutingEvent(0, 0, np.array([[0, 1]], np.int16)))
    assert np.allclose(predictor.predict().probs_HE, popularity(trace)[[1, 0]], atol=0.02)


def test_a_trace_without_domains_is_refused() -> None:
    trace = kinds()
    for metas in ([], [{"domain": "a"}] * 11 + [{}]):
        header = replace(trace.header, sequences=metas)
        with pytest.raises(TraceError, match="needs the domain of every sequence"):
            PopularityDomain().fit(replace(trace, header=header))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("maps", [3, 64])
def test_the_nearest_maps_speak(centred: bool, maps: int) -> None:
    trace = kinds()
    predictor = SimilarSequences(horizon=1, maps=maps, neighbours=1, smoothing=0.01, centred=centred).fit(trace)
    assert len(predictor.tensors_["chance_MLE"]) == min(maps, 12)
    for number in range(3):
        for layer in range(2):
            predictor.observe(RoutingEvent(layer, number, trace.expert_ids[number, layer][None].astype(np.int16)))
    named = set(np.argsort(-predictor.predict().probs_HE[0], kind="stable")[:4].tolist())
    assert named == set(np.unique(trace.expert_ids[:40, 1]).tolist())


def test_before_anything_was_routed_maps_say_popularity() -> None:
    trace = kinds()
    predictor = SimilarSequences(horizon=1).fit(trace)
    predictor.observe(RoutingEvent(0, 0, np.full((1, 2), -1, np.int16)))
    assert np.allclose(predictor.predict().probs_HE, popularity(trace)[[1, 0]])


@pytest.mark.parametrize("settings", [{"neighbours": 0}, {"neighbours": 5, "maps": 4}])
def test_more_neighbours_than_maps_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="neighbours of"):
        SimilarSequences(**settings).fit(kinds())  # type: ignore[arg-type]


def test_another_trace_is_not_taken_for_the_last_one() -> None:
    predictor, rows, first = SimilarSequences(horizon=1).fit(kinds()), np.arange(480), np.arange(480) % 40 == 0
    made = [predictor.predict_trace(kinds(seed=s), 0, rows, first) for s in (8, 9, 8)]
    assert np.array_equal(made[0], made[2]) and not np.array_equal(made[0], made[1])


def test_sums_start_anew_with_each_sequence() -> None:
    made, first = np.array([1, 2, 3, 4, 5]), np.array([True, False, True, False, False])
    assert before_pass(made, first).tolist() == [0, 1, 0, 3, 7]


def test_maps_count_tokens_and_not_padding() -> None:
    trace = learnable_trace(sequences=2, tokens=6)
    assert trace.phase is not None
    trace.phase[5] = 2
    counts, tokens = map_counts(trace)
    assert tokens.tolist() == [5, 6] and counts.shape == (2, LAYERS, 8)
    assert (counts.sum(2) == 2 * tokens[:, None]).all()


def test_blending_is_a_mean() -> None:
    chances = np.array([[[0.0, 1.0]], [[1.0, 0.0]]], np.float32)
    assert np.allclose(blended(np.array([[1.0, 3.0]]), chances), [[[0.75, 0.25]]])
