import numpy as np
import pytest
from omegaconf import OmegaConf

from rgpu.errors import InputError, TraceError
from rgpu.experiments.live import set_up
from rgpu.planning.top_k import TopK
from rgpu.policies.lru import Lru
from rgpu.predictors.draws import mixed, uniform
from rgpu.predictors.oracle import SURE, Oracle
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prediction import evaluate, speaking_passes
from rgpu.replay.prefetching import replay_prefetch
from rgpu.replay.stream import routing_events, tell
from rgpu.types import RoutingEvent
from tests.predicting import EXPERTS, LAYERS, TOP_K, choices, learnable_trace, recall_at_k, routing_trace


def random_trace(tokens: int = 900, length: int = 90, top_k: int = 2):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(5)
    ids = np.stack([choices(rng, tokens, 12, top_k) for _ in range(3)], axis=1)
    return routing_trace(ids, 12, length)


def test_without_noise_it_is_right() -> None:
    trace = random_trace()
    for oracle in (Oracle(horizon=2), Oracle(horizon=2, calibrated=False)):
        assert recall_at_k(oracle.fit(trace), trace) == {0: 1.0, 1: 1.0, 2: 1.0}


@pytest.mark.parametrize(("recall", "width"), [(0.9, 2), (0.5, 2), (0.6, 4), (1.0, 5)])
@pytest.mark.parametrize("calibrated", [True, False])
def test_recall_and_chances_are_as_asked(recall: float, width: int, calibrated: bool) -> None:
    trace = random_trace()
    oracle = Oracle(horizon=2, recall=recall, width=width, calibrated=calibrated).fit(trace)
    rows = [r for r in evaluate(oracle, trace, widths=[width]) if r["width"] == width and r["metric"] == "recall"]
    asked = sum(r["denominators"].sum() for r in rows)
    found = sum(r["numerators"].sum() for r in rows) / asked
    assert abs(found - recall) < 4 * np.sqrt(recall * (1 - recall) / asked) + 1e-12
    chances, routed, rest = [], [], []
    speaking, sequence = speaking_passes(trace)
    probs_PE = oracle.predict_trace(trace, 0, speaking, np.r_[True, np.diff(sequence) > 0])[:, 0]
    for p, row in enumerate(speaking):
        named = np.argsort(-probs_PE[p], kind="stable")[:width]
        chances.append(probs_PE[p, named].mean())
        rest.append(np.delete(probs_PE[p], named).mean())
        routed.append(np.isin(trace.expert_ids[row, 1], named).sum() / width)
    if calibrated:
        assert np.allclose(probs_PE.sum(1), 2, atol=1e-5)
        assert abs(np.mean(chances) - np.mean(routed)) < 4 * 0.5 / np.sqrt(len(speaking) * width)
    else:
        assert np.allclose(chances, SURE) and not np.any(rest)


def test_draws_hang_on_the_seed_and_on_no_order() -> None:
    trace = random_trace()
    rows, sequence = speaking_passes(trace)
    first = np.r_[True, np.diff(sequence) > 0]
    one, other, same = (Oracle(recall=0.5, seed=s).fit(trace) for s in (0, 1, 0))
    at_once = [one.predict_trace(trace, layer, rows, first) for layer in range(3)]
    assert not np.array_equal(at_once[0], other.predict_trace(trace, 0, rows, first))
    part = trace.select(np.array([7, 2]))  # other numbers of sequences and passes
    tell(same, part)
    events = list(routing_events(part))
    for event in events[::-1]:
        same.observe(event)
        s = 7 if event.pass_id < 90 else 2
        assert np.array_equal(same.predict().probs_HE, at_once[event.layer][90 * s + event.pass_id % 90])


def test_after_the_last_token_nothing_is_known() -> None:
    trace = random_trace()
    rows, sequence = speaking_passes(trace)
    probs = Oracle().fit(trace).predict_trace(trace, 2, rows, np.r_[True, np.diff(sequence) > 0])
    assert np.allclose(probs[89, -1], 2 / 12)


def test_a_replay_tells_it_what_comes() -> None:
    trace = random_trace()
    oracle = Oracle(horizon=1).fit(trace)
    made = replay_prefetch(trace, Lru(), PoolConfig("layer", 4), oracle, lambda: TopK(2, 1), reset="sequence")
    hit = made.decisions.codes < 0
    later = np.repeat(made.decisions.events.layer, np.diff(made.decisions.events.offs)) > 0
    assert hit[later].mean() > 0.9 > 0.5 > hit[~later].mean()  # some residents are evicted by what is prefetched


def test_it_does_not_run_live() -> None:
    trace = learnable_trace()
    oracle = Oracle().fit(trace)
    with pytest.raises(InputError, match="whose future it does not know"):
        oracle.observe(next(routing_events(trace)))
    oracle.know(trace)
    with pytest.raises(TraceError, match="pass 999"):
        oracle.observe(RoutingEvent(0, 999, np.array([[0, 1]], np.int16)))


def test_generate_refuses_it_in_a_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    saved = str(Oracle().fit(learnable_trace()).save(tmp_path / "oracle"))
    cfg = OmegaConf.create({
        "policy": {"_target_": "rgpu.policies.lru.Lru"}, "admission": {"_target_": "rgpu.policies.admission.Always"},
        "calibration": {"predictor": saved, "trace": None}, "predictor": None, "verify": False, "profile_out": None,
        "profile": None,
    })  # fmt: skip
    with pytest.raises(
        InputError, match="oracle: got a predictor that reads the future; expected one that can run live"
    ):
        set_up(cfg)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recall": 0.1}, "recall 0.1"),
        ({"recall": 1.5}, "recall 1.5"),
        ({"width": 1}, "width 1"),
        ({"width": 9}, "width 9"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Oracle(**settings).fit(learnable_trace())  # type: ignore[arg-type]


def test_rows_of_a_batch_are_averaged_and_padding_says_nothing() -> None:
    trace = learnable_trace(sequences=2)
    assert trace.phase is not None
    oracle = Oracle(horizon=1).fit(trace).know(trace)
    prompt = next(routing_events(trace))
    oracle.observe(prompt)
    assert oracle.predict().probs_HE.shape == (2, EXPERTS)
    assert set(np.flatnonzero(oracle.predict().probs_HE[0])) == set(trace.expert_ids[3, 1].tolist())
    assert LAYERS > 1 and TOP_K == 2


def test_draws_are_uniform_and_distinct() -> None:
    keys = mixed(np.arange(2000, dtype=np.uint64), np.uint64(3))
    draws = uniform(keys, (1, 2), 16)
    assert len(np.unique(draws)) == draws.size and draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01 and abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.1
    assert np.histogram(draws, 10)[0].min() > 0.09 * draws.size
