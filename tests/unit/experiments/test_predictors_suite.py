"""`rgpu reproduce suite=predictors`: its parts by hand, its verdicts on made-up rows, and the quick form as a whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.reproduce import suite_named
from rgpu.experiments.study.stages import Stages
from rgpu.experiments.suites import predictors as suite
from rgpu.experiments.suites.predicting import (
    accuracy,
    cost,
    fitting,
    layers,
    next_token,
    prefetch,
    recall,
    switches,
    transfer,
)
from rgpu.experiments.suites.predicting.fitting import Bench
from rgpu.experiments.suites.predicting.material import Material, documents, only, read_again, window, without
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.judging import judged
from rgpu.experiments.suites.published.record import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    SHAPE_ONLY,
    NotTestableError,
    status_of,
)
from rgpu.experiments.suites.published.subjects import halves
from rgpu.experiments.suites.published.values import values_of
from rgpu.results.rows import frame, read
from rgpu.results.statistics import Interval
from rgpu.traces.storage import save_trace
from rgpu.traces.trace import Trace
from tests.predicting import EXPERTS, LAYERS, TOP_K, learnable_trace
from tests.predictor_rows import predictor_rows
from tests.result_rows import CONTEXT


@pytest.fixture(scope="module")
def trace() -> Trace:
    made = learnable_trace(sequences=16, logits=True)
    for s, meta in enumerate(made.header.sequences):
        meta["domain"] = ("prose", "code")[s % 2]
    made.token_ids = np.random.default_rng(5).integers(0, 7, made.tokens, np.int32)
    return made


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "fitted", quick=True, names=["popularity", "previous_token", "linear"])


@pytest.fixture
def material(trace: Trace) -> Material:
    return Material(halves("toy", "made up", trace))


def computed(module: Any, bench: Bench, material: Material) -> pd.DataFrame:
    return frame(pa.concat_tables(module.rows(bench, material)))


def test_every_family_that_does_not_see_the_future_is_fitted() -> None:
    found = fitting.names()
    assert {"popularity", "previous_token", "gate_lookahead", "linear"} <= set(found)
    assert "oracle" not in found


def test_a_window_of_every_sequence(trace: Trace) -> None:
    part = window(trace, 10, 14)
    assert np.diff(part.seq_offsets).tolist() == [4] * trace.sequences
    assert np.array_equal(part.expert_ids[:4], trace.expert_ids[10:14])
    assert np.array_equal(part.hidden[4:8], trace.hidden[40:44])  # type: ignore[index]
    short = window(trace, 25, 99)
    assert np.diff(short.seq_offsets).tolist() == [5] * trace.sequences
    assert window(trace.select(np.array([0])), 30, 40).tokens == 0


def test_documents_part_a_trace(trace: Trace) -> None:
    own = {"d1", "d2"}
    assert {d for d in documents(only(trace, own)) if " " not in d} == own
    assert only(trace, own).tokens + without(trace, own).tokens == trace.tokens


def test_cosines_by_hand(trace: Trace) -> None:
    sums, counts = layers.cosines(trace, 0, 2)
    a, b = (trace.hidden[:30, layer].astype(float) for layer in (0, 2))  # type: ignore[index]
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert sums[0] == pytest.approx(expected.sum(), rel=1e-5) and counts.tolist() == [30] * 16


def test_history_keeps_to_its_sequence(trace: Trace) -> None:
    hot = next_token.routed(trace)
    assert hot.shape == (trace.tokens, LAYERS * EXPERTS) and (hot.sum(1) == LAYERS * TOP_K).all()
    past = next_token.history(trace, hot)
    size = LAYERS * EXPERTS
    assert np.allclose(past[30, size : 2 * size], 0.25 * hot[30])  # a sequence begins anew
    assert np.allclose(past[31, size : 2 * size], 0.75 * 0.25 * hot[30] + 0.25 * hot[31])
    pairs = next_token.pairs(trace)
    assert 29 not in pairs and 2 not in pairs and 3 in pairs  # last of a sequence; inside and at the end of a prompt


def test_a_ridge_regression_finds_a_linear_truth() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    truth = (x @ rng.normal(size=(5, 6))).argsort(1)[:, -2:]
    y = np.zeros((400, 6), np.float32)
    np.put_along_axis(y, truth, 1, 1)

    def recall(score: np.ndarray, hot: np.ndarray) -> float:
        return float(next_token.hits(score, hot, 6, 2).sum())

    fitted = next_token.ridge(x, y, np.arange(400) >= 320, recall)
    assert recall(fitted(x), y) / y.sum() > 0.85
    assert next_token.hits(y, y, 6, 2).tolist() == [2] * 400
    assert next_token.wide(8) == 11 and next_token.wide(4) == 6


def test_the_penalty_is_chosen_without_the_rows_held_out() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 4)).astype(np.float32), rng.random((60, 3)).astype(np.float32)
    held, seen = np.arange(60) >= 40, []

    def note_scores(score: np.ndarray, _: np.ndarray) -> float:
        seen.append(score)
        return 0.0

    x[held] *= 100  # would move means and spreads
    next_token.ridge(x, y, held, note_scores)
    alone = next_token.ridge(x[~held], y[~held], np.zeros(40, bool), note_scores)
    assert len(seen) == len(next_token.PENALTIES) and np.allclose(seen[0], alone(x[held]), atol=1e-4)


@pytest.mark.parametrize("rows", [12, 60])  # fewer than features, and more
def test_ridge_weights_solve_the_normal_equations(rows: int) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(rows, 20)).astype(np.float32), rng.random((rows, 3)).astype(np.float32)
    fitted = next_token.ridge(x, y, np.zeros(rows, bool), lambda *_: 0.0)  # none held out: the first penalty
    z = ((x - x.mean(0)) / (x.std(0) + 1e-6)).astype(np.float64)
    weight = np.linalg.solve(z.T @ z + next_token.PENALTIES[0] * np.eye(20), z.T @ (y - y.mean(0)))
    assert fitted(x) == pytest.approx(z @ weight + y.mean(0), abs=1e-4)


def test_sources_of_the_next_token(bench: Bench, material: Material) -> None:
    found = computed(next_token, bench, material)
    cases = set(found["case"])
    assert cases == {"popularity", "previous token", "routed ids", "hidden state", "hidden states of all layers",
                     "ids and hidden states", "the next token's number"}  # fmt: skip
    at = found.set_index(["metric", "case"])["value"].astype(float)
    assert at["recall", "hidden state"] > at["recall", "popularity"]
    assert all(at["recall_wide", c] >= at["recall", c] for c in cases)
    judged(next_token, found)


def test_sides_train_on_one_and_score_on_both(bench: Bench, material: Material) -> None:
    found = computed(transfer, bench, material)
    groups = found[found["metric"] == "recall"].groupby("case", observed=True)["baseline"].nunique()
    assert groups.to_dict() == {"domain": 2, "context": 2}
    rates = found[(found["metric"] == "recall") & (found["horizon"] == 1)]
    at = {(r.predictor, r.case, r.baseline, r.domain): r for r in each(rates)}
    gaps = found[(found["metric"] == "recall_difference") & (found["horizon"] == 1)]
    for gap in each(gaps):
        other = at[gap.predictor, gap.case, gap.baseline, gap.domain]
        own = at[gap.predictor, gap.case, gap.domain, gap.domain]
        assert gap.value == pytest.approx(other.value - own.value)
        assert gap.lo <= gap.value <= gap.hi and gap.count == own.count
    assert set(gaps[gaps["case"] == "domain"]["verdict"]) == {"cannot tell"}  # three or four sequences each
    notes = judged(transfer, found)
    assert {c.kind for c in notes} == {"note"}
    (domain,) = (c for c in notes if c.text.startswith("domain: recall lost"))
    lost = gaps[(gaps["case"] == "domain") & (gaps["horizon"] == 1) & (gaps["predictor"] == "linear")]["value"]
    assert len(lost) == 2  # a gain on one side hides no loss on the other
    told = {"mean": lost.mean(), "least": lost.min(), "most": lost.max()}
    assert domain.measured["linear"] == pytest.approx(told, abs=1e-5)


def test_the_full_form_transfers_every_family_but_those_trained_long(tmp_path: Path, material: Material) -> None:
    asked = ["popularity", "markov", "online_head", "boosted_trees"]
    found = {q: computed(transfer, Bench(tmp_path / str(q), q, asked), material) for q in (False, True)}
    names = {q: set(own["predictor"].dropna()) for q, own in found.items()}
    assert names == {False: {"popularity", "markov", "online_head"}, True: {"popularity"}}


def test_differences_of_a_group_are_corrected_together() -> None:
    row = {"width": 4, "horizon": 1}
    gaps = [
        transfer.Gap("popularity", "a", "b", row, Interval(-0.1, -0.12, -0.08), p, clusters)  # type: ignore[arg-type]
        for p, clusters in ((0.01, 9), (0.03, 9), (0.04, 9), (0.001, 7))
    ]
    found = frame(pa.concat_tables(transfer._gap_rows(CONTEXT, gaps)))
    assert found["p_value"].tolist() == pytest.approx([0.03, 0.06, 0.06, 0.004])
    assert found["verdict"].tolist() == ["worse", *["cannot tell"] * 3]


def test_what_cannot_be_told_decides_nothing() -> None:
    rows = frame(pa.concat_tables(predictor_rows(CONTEXT)))
    own = rows[(rows["experiment"] == "predictor_transfer") & (rows["method"] != "published")].astype(
        {"verdict": object}
    )
    assert [c.holds for c in judged(transfer, own) if c.kind == "shape"] == [True, True, True]
    gap = own["metric"] == "recall_difference"
    own.loc[gap, "verdict"] = "cannot tell"
    kept = [c for c in judged(transfer, own) if c.kind == "shape"]
    assert [c.text.split(",")[0] for c in kept] == ["look-ahead is within a point of the trained probe"]
    own["count"] = 7
    assert status_of(judged(transfer, own)) == NOT_TESTABLE
    own.loc[gap, "verdict"] = "better"
    assert status_of(judged(transfer, own)) == NOT_REPRODUCED


def test_what_refuses_is_named(bench: Bench, trace: Trace) -> None:
    bare = halves("bare", "made up", trace)
    for part in (bare.calibration, bare.scored):
        part.hidden = None
    material = Material(bare)
    assert bench.usable(material) == ["popularity", "previous_token"]
    assert "needs the array 'hidden'" in bench.refused["bare"]["linear"]
    with pytest.raises(NotTestableError, match="topic switches"):
        switches.rows(bench, material)


def test_a_fit_is_kept_and_taken_up_again(bench: Bench, material: Material) -> None:
    first = bench.fitted("linear", material, material.subject.calibration, "calibration")
    again = Bench(bench.folder, True, bench.names).fitted("linear", material, None, "calibration")  # type: ignore[arg-type]
    assert again is not first and np.array_equal(again.tensors_["bias_LHE"], first.tensors_["bias_LHE"])


def test_what_nothing_beats() -> None:
    us, recall = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 2.0}, {"a": 0.4, "b": 0.6, "c": 0.5, "d": 0.55}
    assert cost.front(us, recall) == ["a", "b"]


@pytest.mark.parametrize(("exact", "status"), [(0.5, SHAPE_ONLY), (0.6, NOT_REPRODUCED)])
def test_exact_match_is_judged_where_recall_is_high(exact: float, status: str) -> None:
    at = CONTEXT.at(experiment="predictor_accuracy", width=4)
    tables = [at.rows("accuracy_of_none", "share", 0.875)]
    for name, named, all_of_them in (("low", 0.5, 0.45), ("high", 0.88, exact)):
        for metric, value in (("recall", named), ("exact_match", all_of_them), ("accuracy", 0.9)):
            tables.append(at.rows(metric, "share", value, predictor=name))
    criteria = judged(accuracy, frame(pa.concat_tables(tables)))
    assert status_of(criteria) == status and [c.kind for c in criteria].count("shape") == 1


def test_what_holds_by_definition_decides_nothing() -> None:
    rows = frame(pa.concat_tables(predictor_rows(CONTEXT)))
    for module, words in ((recall, "it cannot"), (layers, "they cannot")):
        own = rows[(rows["experiment"] == module.ABOUT.figure) & (rows["method"] != "published")]
        (found,) = [c for c in judged(module, own) if words in c.text]
        assert found.kind == "note"


def test_a_model_at_lower_precision_did_not_write_the_text(trace: Trace) -> None:
    class Same:
        def read(self, prompts: Any, name: str) -> Trace:
            return trace.select(np.arange(trace.sequences))

    before = trace.header.on_policy
    trace.header.on_policy = True
    assert read_again(Same(), trace, "again").header.on_policy  # type: ignore[arg-type]
    low = read_again(Same(), trace, "int4", quantisation="int4").header  # type: ignore[arg-type]
    trace.header.on_policy = before
    assert not low.on_policy and low.quantisation == "int4"


def test_verdicts_of_made_up_rows() -> None:
    rows = frame(pa.concat_tables(predictor_rows(CONTEXT)))
    said = {}
    for module in suite.figures():
        own = rows[(rows["experiment"] == module.ABOUT.figure) & (rows["method"] != "published")]
        said[module.ABOUT.id] = status_of(judged(module, own))
    assert said["next_token"] == NOT_REPRODUCED  # routed ids do not reach 0.9
    assert said["transfer"] == SHAPE_ONLY  # text costs the probe recall, look-ahead does as well
    assert said["recall"] != NOT_REPRODUCED
    assert said["accuracy"] == NOT_TESTABLE  # no recall near 0.9
    assert REPRODUCED not in {said[m] for m in ("calibration", "cost", "switches")}
    ours = suite.unpublished({"paper": "not published", "numbers": {"t": {"status": "x"}}, "by_trace": {"t": "x"}})
    assert ours["status"] == ours["by_trace"]["t"] == suite.UNPUBLISHED
    lacking = {"t": {"status": NOT_TESTABLE, "why": "no trace"}}
    ours = suite.unpublished({"paper": "not published", "numbers": lacking, "by_trace": {"t": NOT_TESTABLE}})
    assert ours["status"] == ours["by_trace"]["t"] == NOT_TESTABLE
    assert all(values_of(m) for m in ("recall", "layers", "accuracy", "transfer", "next_token"))


def test_prefetching_leaves_out_what_the_default_was_chosen_on(
    bench: Bench, trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = replace(trace, token_ids=np.arange(trace.tokens, dtype=np.int32))  # no two sequences alike
    material = Material(halves("toy", "made up", trace), "a model")
    scored = [m["document"] for m in material.subject.scored.header.sequences]
    kept: list[tuple[list[str], bool]] = []

    def judged_run(*args: Any) -> tuple[list[pa.Table], dict[str, Any]]:
        kept.append(([m["document"] for m in args[2].header.sequences], args[-1]))
        return list(predictor_rows(CONTEXT)), {}

    monkeypatch.setattr(prefetch, "run", judged_run)
    for name, chosen in (("some", trace.select(np.arange(4))), ("all", trace)):
        save_trace(chosen, tmp_path / f"{name}.safetensors")
        stages = Stages(tmp_path, name)
        prefetch.prefetching(bench, [material], stages, tmp_path, tmp_path / f"{name}.safetensors")
    assert kept[0] == ([d for d in scored if d not in {"d0", "d1", "d2", "d3"}], False) and len(kept[0][0]) < len(
        scored
    )
    assert kept[1] == (scored, True)  # nothing else is left: timed, and no verdict


def test_the_quick_form(tmp_path: Path) -> None:
    paths = {"traces": "assets/traces", "model": "assets/reference", "heldout": "assets/heldout"}
    cfg = OmegaConf.create({**paths, "shared": str(tmp_path), "out": str(tmp_path / "out"), "quick": True, "seed": 0})
    run, out = suite_named("predictors")
    assert run is suite.run and out == "results/predictors"
    document = json.loads(json.dumps(run(cfg), default=float))
    assert [f["id"] for f in document["figures"]] == [*suite.FIGURES, *suite.PREFETCH, "prefetch_live"]
    slow = document["live"]["tables"][-1]
    assert slow["emulated"] and slow["link"] in Path(document["report"]).read_text()
    assert document["live"]["outputs_identical"] and document["live"]["decisions_identical"]
    assert document["prefetching"]["verdicts"][0]["says"]
    assert document["refused"] == {"reference": {}} and "gpt-oss-20b" in " ".join(document["limits"])
    assert document["families"] == fitting.names()
    assert document["statuses"]["switches"] == NOT_TESTABLE  # its text is not read again
    for figure in document["figures"]:
        assert figure["files"] or figure["id"] == "switches"
        assert all(file.endswith(".svg") for file in figure["files"])
    rows = read(document["rows"])
    recall = rows[(rows["experiment"] == "predictor_recall") & (rows["metric"] == "recall") & (rows["horizon"] == 1)]
    best = recall[recall["width"] == 4].set_index("predictor")["value"].astype(float)
    assert best["gate_lookahead"] > 0.7 > best["popularity"]
    assert Path(document["report"]).is_file() and not list((tmp_path / "out").glob(".parts-*"))
    with pytest.raises(InputError, match="shipped ones"):
        run(OmegaConf.merge(cfg, {"traces": str(tmp_path)}))
