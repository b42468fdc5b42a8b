"""Every predictor that has a config: fits, forecasts, resets, saves and loads, and refuses what it was not made for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.experiments.injected import with_kernel
from rgpu.planning.top_k import TopK
from rgpu.predictors.base import load_predictor
from rgpu.predictors.hidden import HiddenPredictor
from rgpu.replay.prediction import evaluate, speaking_passes
from rgpu.replay.stream import routing_events, tell
from rgpu.traces.split import split
from rgpu.traces.trace import OPTIONAL, Trace, TraceHeader
from tests.predicting import EXPERTS, FOLDER, LAYERS, TOP_K, learnable_trace, make

NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))
pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return learnable_trace()


def forecasts(predictor: Any, trace: Trace) -> list[np.ndarray]:
    tell(predictor, trace)
    predictor.reset()
    found = []
    for event in routing_events(trace):
        predictor.observe(event)
        found.append(predictor.predict().probs_HE)
    return found


def test_config_names_it(name: str, tmp_path: Path) -> None:
    predictor = make(name, tmp_path)
    assert predictor.name == name
    assert type(predictor).__doc__
    assert {"schema_", "tensors_"}.isdisjoint(vars(predictor))


def test_forecast_rows(name: str, tmp_path: Path, trace: Trace) -> None:
    predictor = make(name, tmp_path, horizon=2)
    assert predictor.fit(trace) is predictor
    part = trace.select(np.array([0, 1]))
    tell(predictor, part)
    for event in routing_events(part):
        predictor.observe(event)
        forecast = predictor.predict()
        ahead = [layer for layer in (event.layer + 1, event.layer + 2) if layer < LAYERS]
        assert forecast.layers.tolist() == [*ahead, event.layer]
        assert forecast.tokens_ahead.tolist() == [0] * len(ahead) + [1]
        assert forecast.probs_HE.shape == (len(ahead) + 1, EXPERTS)
        assert forecast.probs_HE.dtype == np.float32
        assert (forecast.probs_HE >= 0).all() and (forecast.probs_HE <= 1).all()
        sums = forecast.probs_HE.sum(1)
        assert (sums > 0.4 * TOP_K).all() and (sums < 2 * TOP_K).all()


def test_same_fit_same_forecasts(name: str, tmp_path: Path, trace: Trace) -> None:
    first, second = (forecasts(make(name, tmp_path).fit(trace), trace) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_reset_forgets_the_sequence_and_keeps_the_fit(name: str, tmp_path: Path, trace: Trace) -> None:
    predictor = make(name, tmp_path).fit(trace)
    one, other = (trace.select(np.array([s])) for s in (0, 1))
    fresh = forecasts(predictor, one)
    forecasts(predictor, other)
    assert all(np.array_equal(a, b) for a, b in zip(fresh, forecasts(predictor, one), strict=True))
    predictor.reset()
    with pytest.raises(InputError, match="before any event"):
        predictor.predict()


def test_trace_at_once_is_bit_for_bit_event_by_event(name: str, tmp_path: Path, trace: Trace) -> None:
    predictor = make(name, tmp_path).fit(trace)
    by_event: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    for s in range(trace.sequences):
        found = forecasts(predictor, trace.select(np.array([s])))
        for layer in range(LAYERS):
            by_event[layer] += found[layer::LAYERS]
    rows, sequence = speaking_passes(trace)
    first = np.r_[True, sequence[1:] != sequence[:-1]]
    for layer in range(LAYERS):
        assert np.array_equal(predictor.predict_trace(trace, layer, rows, first), np.stack(by_event[layer]))


def test_a_kernel_changes_no_bit(name: str, tmp_path: Path, trace: Trace) -> None:
    plain, given = (make(name, tmp_path).fit(trace) for _ in range(2))
    assert with_kernel(given) is given
    if isinstance(given, HiddenPredictor):
        assert given.forward is not plain.forward and given.params() == plain.params()
    part = trace.select(np.array([0, 1]))
    for a, b in zip(forecasts(plain, part), forecasts(given, part), strict=True):
        assert np.array_equal(a.view(np.int32), b.view(np.int32))
    rows, sequence = speaking_passes(part)
    first = np.r_[True, sequence[1:] != sequence[:-1]]
    a, b = (p.predict_trace(part, 0, rows, first) for p in (plain, given))
    assert np.array_equal(a.view(np.int32), b.view(np.int32))


def test_saved_predictor_forecasts_the_same(name: str, tmp_path: Path, trace: Trace) -> None:
    predictor = make(name, tmp_path, horizon=3).fit(trace, split(trace))
    predictor.save(tmp_path / "saved")
    loaded = load_predictor(tmp_path / "saved", expect=trace)
    assert type(loaded) is type(predictor)
    assert loaded.schema_ == predictor.schema_
    assert loaded.params() == predictor.params()
    assert loaded.schema_.split_digest == split(trace).digest
    assert loaded.schema_.trace_checksum == trace.checksum()
    again = type(predictor).load(tmp_path / "saved.safetensors", trace.shape)
    for a, b, c in zip(*(forecasts(p, trace) for p in (predictor, loaded, again)), strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    assert not list(tmp_path.glob("*.partial"))


def test_another_model_is_refused(name: str, tmp_path: Path, trace: Trace) -> None:
    make(name, tmp_path).fit(trace).save(tmp_path / "saved")
    with pytest.raises(InputError, match="experts 8 instead of 16"):
        load_predictor(tmp_path / "saved", expect=replace(trace.shape, experts=16))
    header = TraceHeader(**{**trace.header.to_json(), "model": "other"})
    with pytest.raises(InputError, match="model toy.* instead of other"):
        load_predictor(tmp_path / "saved", expect=replace(trace, header=header))


def test_not_fitted_is_one_line(name: str, tmp_path: Path, trace: Trace) -> None:
    event = next(routing_events(trace))
    with pytest.raises(InputError, match="not fitted"):
        make(name, tmp_path).observe(event)
    with pytest.raises(InputError, match="horizon 0"):
        make(name, tmp_path, horizon=0).fit(trace)


def test_inputs_it_needs_are_named(name: str, tmp_path: Path, trace: Trace) -> None:
    predictor = make(name, tmp_path)
    bare = replace(trace, **{array: None for array in OPTIONAL if array not in ("phase", *predictor.needs)})
    assert evaluate(predictor.fit(bare), bare)
    said = {"hidden": "no hidden state", "pre_attention": "no state before attention", "token_ids": "no token ids"}
    for array, what in said.items():
        if array in predictor.needs:
            less = replace(trace, **{array: None})
            with pytest.raises(InputError, match=f"needs the array '{array}'"):
                make(name, tmp_path).fit(less)
            with pytest.raises(InputError, match=what):
                predictor.observe(next(routing_events(less)))


def test_beats_naming_experts_at_random(name: str, tmp_path: Path, trace: Trace) -> None:
    parts = split(trace)
    rows = evaluate(make(name, tmp_path).fit(trace, parts), trace.select(parts.scored))
    recall = [r["value"] for r in rows if (r["metric"], r["horizon"], r["width"]) == ("recall", 1, TOP_K)]
    assert len(recall) == LAYERS - 1
    assert np.mean(recall) > TOP_K / EXPERTS


def test_plans(name: str, tmp_path: Path, trace: Trace) -> None:
    predictor = make(name, tmp_path).fit(trace)
    tell(predictor, trace)
    predictor.observe(next(routing_events(trace)))
    resident = np.zeros((LAYERS, EXPERTS), bool)
    loads = TopK(width=3, horizon=2, next_token=True).plan(predictor.predict(), resident)
    assert {load.layer for load in loads} <= {0, 1, 2}
    assert 6 <= len(loads) <= 9
