"""What is said of a predictor beside its totals: intervals, pairs, domains, distances from a switch, cost, `rgpu train`."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from rgpu.errors import InputError
from rgpu.experiments.study import predictor_metrics as metrics
from rgpu.experiments.study.predictor_cost import cost_of
from rgpu.experiments.train import run
from rgpu.predictors.popularity import Popularity
from rgpu.predictors.previous_token import PreviousToken
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import over_layers
from rgpu.results.rows import Context, frame
from rgpu.results.statistics import bootstrap, paired_difference
from rgpu.traces.split import split
from rgpu.traces.storage import save_trace
from rgpu.traces.trace import DECODE, Trace
from rgpu.types import RoutingEvent
from tests.predicting import EXPERTS, LAYERS, TOP_K, learnable_trace


@pytest.fixture(scope="module")
def trace() -> Trace:
    made = learnable_trace(sequences=8)
    for s, meta in enumerate(made.header.sequences):
        meta["domain"] = ("prose", "code")[s % 2]
    return made


@pytest.fixture(scope="module")
def rows(trace: Trace) -> list[dict[str, Any]]:
    return evaluate(PreviousToken().fit(trace), trace)


def one(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (row,) = metrics.pick(rows, **wanted)
    return row


def test_intervals_are_those_of_the_statistics(rows: list[dict[str, Any]]) -> None:
    row = one(rows, metric="recall", layer=2, horizon=1, width=TOP_K)
    assert metrics.interval(row) == bootstrap(row["numerators"], row["denominators"])
    ece = metrics.interval(one(rows, metric="ece", layer=2, horizon=1))
    assert ece.lo <= ece.hi and ece.estimate == pytest.approx(one(rows, metric="ece", layer=2, horizon=1)["value"])
    assert np.isnan(metrics.interval(one(rows, metric="f1", layer=2, horizon=1)).lo)


def test_two_predictors_on_the_same_sequences(trace: Trace, rows: list[dict[str, Any]]) -> None:
    other = evaluate(Popularity().fit(trace), trace)
    at = {"metric": "recall", "layer": 2, "horizon": 0, "width": TOP_K}
    a, b = one(rows, **at), one(other, **at)
    found, p = metrics.difference(a, b)
    assert (found, p) == paired_difference(a["numerators"], a["denominators"], b["numerators"], b["denominators"])
    assert found.estimate == pytest.approx(a["value"] - b["value"]) and found.lo <= found.estimate <= found.hi
    with pytest.raises(InputError, match="cannot compare f1"):
        metrics.difference(one(rows, metric="f1", layer=2, horizon=1), b)


def test_domains_part_the_sequences(trace: Trace, rows: list[dict[str, Any]]) -> None:
    found = metrics.by_domain(rows, trace)
    assert set(found) == {"prose", "code"}
    at = {"metric": "recall", "layer": 1, "horizon": 1, "width": TOP_K}
    whole, parts = one(rows, **at), [one(found[name], **at) for name in ("prose", "code")]
    assert sum(p["denominators"].sum() for p in parts) == whole["denominators"].sum()
    alone = evaluate(PreviousToken().fit(trace), trace.select(np.arange(1, 8, 2)))
    for metric in ("recall", "log_loss", "ece"):
        width = TOP_K if metric == "recall" else None
        at = {"metric": metric, "layer": 1, "horizon": 1, "width": width}
        assert one(found["code"], **at)["value"] == pytest.approx(one(alone, **at)["value"])
    assert not metrics.pick(found["code"], metric="f1")


def test_distances_from_a_switch() -> None:
    trace = learnable_trace(sequences=2, tokens=60)
    trace.header.sequences[0]["switches"] = [50]
    trace.header.sequences[1]["switches"] = [4, 20]
    cell = metrics.switch_cells(trace)
    names = [metrics.cell_name(c) for c in range(7)]
    assert names == ["-40..-1", "0..3", "4..7", "8..15", "16..31", "32..63", "64.."]
    assert cell[9] == -1 and cell[10] == 0  # 41 and 40 tokens before
    assert [names[c] for c in cell[[49, 50, 53, 54, 57, 58]]] == [names[0], *names[1:2] * 2, *names[2:3] * 2, names[3]]
    second = cell[60:]
    assert [names[c] for c in second[[3, 4, 19, 20, 59]]] == [names[0], names[1], names[3], names[1], names[5]]
    assert (metrics.switch_cells(learnable_trace(sequences=1)) == -1).all()


def test_switches_leave_out_what_calibrated(trace: Trace) -> None:
    switching = learnable_trace(seed=3, sequences=4, tokens=60)
    for s, meta in enumerate(switching.header.sequences):
        meta |= {"document": [f"d{s}", f"x{s}"], "switches": [30]}
    fitted = PreviousToken().fit(trace)
    found, left = metrics.around_switches(fitted, switching, trace.select(np.array([0, 1])), horizons=1)
    assert left == ["d0", "d1"]
    row = one(found, metric="recall", horizon=1, width=TOP_K, cell=1)
    assert len(row["numerators"]) == 2 and row["count"] == 2 * 4 * (LAYERS - 1)
    with pytest.raises(InputError, match="shares nothing"):
        metrics.around_switches(fitted, switching, trace, 1)
    with pytest.raises(InputError, match="no topic switch"):
        metrics.around_switches(fitted, learnable_trace(seed=4), trace.select(np.array([0])), 1)


def test_every_metric_is_in_a_summary(rows: list[dict[str, Any]]) -> None:
    said = metrics.summary(over_layers(rows), 4, EXPERTS, TOP_K, bins=True)
    assert set(said) == {"next_token", "1", "2", "3"}
    near = said["1"]
    assert set(metrics.METRICS) < set(near)
    assert near["ceiling"] is None and near["tied"] is None  # no logits in this trace
    assert near["recall"]["lo"] <= near["recall"]["value"] <= near["recall"]["hi"]
    assert near["precision"]["value"] == pytest.approx(near["recall"]["value"] * TOP_K / 4, abs=1e-4)
    assert near["accuracy_of_naming_none"] == 1 - TOP_K / EXPERTS
    assert (
        sum(b["pairs"] for b in near["reliability"])
        == one(over_layers(rows), metric="top1", horizon=1)["count"] * EXPERTS
    )
    assert json.dumps(said)


def test_rows_of_results_have_the_vocabulary(rows: list[dict[str, Any]]) -> None:
    context = Context(experiment="prediction", trace="t", source="s", trace_tokens=1)
    for row in over_layers(rows):
        table = frame(metrics.result_rows(context, row, predictor="p"))
        assert len(table) == 1 and table["value"][0] == pytest.approx(row["value"])
        assert table["case"][0] == row["case"]


def test_cost_by_a_clock_of_ours(trace: Trace) -> None:
    ticks = count()
    fitted = Popularity(horizon=2).fit(trace)
    cost = cost_of(fitted, trace, events=100, clock=lambda: next(ticks) * 1e-3)
    assert (
        cost.events == 104 and cost.us == cost.us_lo == cost.us_hi == 250
    )  # whole passes; a tick each, of four events
    assert cost.parameters == LAYERS * EXPERTS and cost.state_bytes == 4 * LAYERS * EXPERTS
    assert cost.flops == 0 and cost.bytes_read == 4 * EXPERTS * np.mean([3, 3, 2, 1])
    with pytest.raises(InputError, match="before any event"):
        fitted.predict()


def test_cost_is_of_decoding_and_sequences_are_reset(trace: Trace) -> None:
    now, resets = [0.0], []

    class Timed(Popularity):
        def reset(self) -> None:
            resets.append(now[0])
            now[0] += 1.0
            super().reset()

        def observe(self, event: RoutingEvent) -> None:
            now[0] += 1e-6 if event.phase_T is not None and (event.phase_T == DECODE).all() else 0.5
            super().observe(event)

    fitted = Timed().fit(trace)
    for events, sequences in ((40, 1), (300, 4)):  # 104 events of decoding a sequence
        resets.clear()
        cost = cost_of(fitted, trace, events=events, clock=lambda: now[0])
        assert cost.us == cost.us_lo == cost.us_hi == 1.0 and len(resets) == sequences + 1
    prompts = replace(trace, phase=np.zeros(trace.tokens, np.uint8))
    assert cost_of(fitted, prompts, events=40, clock=lambda: now[0]).us == 5e5
    assert cost_of(fitted, replace(trace, phase=None), events=40).events > 0


def test_a_predictor_that_does_not_say_what_it_reads(trace: Trace) -> None:
    class Silent(Popularity):
        def work(self, layer: int) -> None:
            return None

    cost = cost_of(Silent().fit(trace), trace, events=20)
    assert cost.bytes_read is None and cost.flops is None and cost.us > 0


def test_train_writes_every_metric(trace: Trace, tmp_path: Path) -> None:
    save_trace(trace, tmp_path / "t.safetensors")
    switching = learnable_trace(seed=3, sequences=2, tokens=60)
    for meta in switching.header.sequences:
        meta |= {"document": f"new {meta['document']}", "switches": [30]}
    save_trace(switching, tmp_path / "switch.safetensors")
    overrides = [f"trace.path={tmp_path}/t.safetensors", f"switches={tmp_path}/switch.safetensors", "width=3"]
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        cfg = compose("train", [*overrides, "predictor=previous_token", f"out={tmp_path}/p"])
    said = run(cfg)
    assert said["width"] == 3 and said["metrics"]["1"]["recall"]["value"] > 0 and said["cost"]["us"] > 0
    details = json.loads(Path(said["details"]).read_text())
    assert len(details["by_layer"]) == LAYERS and set(details["by_domain"]) == {"prose", "code"}
    assert set(details["by_distance"]) > {"left_out", "-40..-1", "0..3", "16..31"}
    assert details["all"]["1"]["recall"] == said["metrics"]["1"]["recall"]
    with pytest.raises(InputError, match="got width 9"):
        cfg.width = 9
        run(cfg)
    assert len(split(trace).scored) == said["scored_sequences"]


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("missing", "check switches"),
        ("other model", "switches: got a trace of another model"),
        ("no hidden", "switches=.*needs the array 'hidden'"),
        ("no switch", "names no topic switch"),
        ("all trained", "shares nothing"),
        ("batched", "mix sequences"),
    ],
)
def test_bad_switches_are_refused_before_anything_is_trained(
    trace: Trace, tmp_path: Path, broken: str, line: str
) -> None:
    save_trace(trace, tmp_path / "t.safetensors")
    switching = learnable_trace(seed=3, sequences=8, tokens=60)
    for meta, own in zip(switching.header.sequences, trace.header.sequences, strict=True):
        named = own["document"] if broken == "all trained" else f"new {own['document']}"
        meta |= {"document": named, "switches": [] if broken == "no switch" else [30]}
    if broken == "all trained":
        switching = switching.select(split(trace).calibration)
    if broken == "other model":
        switching.header.model = "another"
    if broken == "no hidden":
        switching.hidden = None
    if broken == "batched":
        switching.passes[:] = np.tile(switching.passes[:60], 8)
    if broken != "missing":
        save_trace(switching, tmp_path / "switch.safetensors")
    words = [f"trace.path={tmp_path}/t.safetensors", f"switches={tmp_path}/switch.safetensors", "predictor=linear"]
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        cfg = compose("train", [*words, "predictor.epochs=1", f"out={tmp_path}/made/p"])
    with pytest.raises(InputError, match=line):
        run(cfg)
    assert not (tmp_path / "made").exists()


def test_another_models_trace_is_refused_before_anything_is_trained(trace: Trace, tmp_path: Path) -> None:
    save_trace(trace, tmp_path / "t.safetensors")
    other = learnable_trace(seed=3)
    other.header.model = "another"
    save_trace(other, tmp_path / "other.safetensors")
    words = [f"trace.path={tmp_path}/t.safetensors", f"score.path={tmp_path}/other.safetensors"]
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        cfg = compose("train", [*words, "predictor=previous_token", f"out={tmp_path}/made/p"])
    with pytest.raises(InputError, match="score.path: got a trace of another model"):
        run(cfg)
    assert not (tmp_path / "made").exists()
