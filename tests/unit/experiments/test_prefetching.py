"""Prefetching judged: the quick run on a tiny trace, the break-even point, and what the verdict says."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from rgpu.experiments.figures import prefetch_break_even, prefetch_tpot
from rgpu.experiments.study import break_even
from rgpu.experiments.study.break_even import COLUMNS, Grid, atlas, machine_at, needed
from rgpu.experiments.study.predicting_time import Work, hidden_of
from rgpu.experiments.study.prefetch_time import BASELINE, COST, FEW, ORACLE, Arm, Court, slots_of
from rgpu.experiments.study.prefetch_verdict import OTHERS, judge, outcome, sentence
from rgpu.experiments.study.prefetching import run
from rgpu.experiments.study.time_saved import worded
from rgpu.experiments.suites.published.clock import machine, yamls
from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prefetching import NoPrefetch
from rgpu.replay.timing.cost import cost_of, experts_only
from rgpu.replay.timing.simulate import MISSES
from rgpu.results.rows import Context, frame
from rgpu.results.statistics import Interval
from rgpu.traces.split import split
from tests.predicting import HIDDEN, learnable_trace, make, write_checkpoint

TRACE = learnable_trace(sequences=18, tokens=12)
CONTEXT = Context(experiment="prefetch_time", trace="toy", source="made up", trace_tokens=TRACE.tokens)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("prefetching")
    parts = split(TRACE)
    halves = (TRACE.select(parts.calibration), TRACE.select(parts.scored))
    tables, document = run(CONTEXT, *halves, write_checkpoint(folder / "model"), folder, quick=True)
    return frame(pa.concat_tables(tables)), document, folder


def test_every_arm_is_timed_against_lru_and_the_bound(found: tuple[pd.DataFrame, dict[str, Any], Path]) -> None:
    table = found[0]
    table = table[table["experiment"] == "prefetch_time"]
    assert table["simulated"].all() and set(table["machine"]) == set(FEW)
    assert set(table["predictor"]) == {"none", "gate_lookahead", "linear", "oracle"}
    shares = table[table["metric"] == "bound_share"]["value"]
    assert (shares > 0).all() and (shares <= 1).all()
    keys = ["machine", "predictor", "case", "policy"]
    table = table.assign(arm=table[keys[1:]].astype(str).agg("/".join, axis=1))
    tpot = table[table["metric"] == "tpot"].set_index(["machine", "arm"])["value"].to_dict()
    saved = table[table["metric"] == "tpot_saved"]
    for where, arm, value, low, high in zip(*(saved[c] for c in ("machine", "arm", "value", "lo", "hi")), strict=True):
        assert value == pytest.approx(tpot[where, "none/none/lru"] - tpot[where, arm])
        assert low <= value <= high
    ends = table[table["metric"].str.startswith("bytes_")].pivot_table(index=keys, columns="metric", values="value")
    ways = ("useful", "late", "wasted", "cancelled", "pending", "harmful", "loaded")
    assert set(ends.columns) == {f"bytes_{n}" for n in ways}
    assert (ends[["bytes_useful", "bytes_late"]].sum(axis=1) > 0).any()


def test_the_document_has_a_verdict_and_the_atlas(found: tuple[pd.DataFrame, dict[str, Any], Path]) -> None:
    table, document, folder = found
    (verdict,) = document["verdicts"]
    assert document["simulated"] and verdict["simulated"] and verdict["timed_as"] == COST
    assert [own["machine"] for own in verdict["machines"]] == list(FEW)
    assert all(set(own["against"]) == set(OTHERS) for own in verdict["machines"])
    assert verdict["sequences"] == document["sequences"]["verdicts"] == 9 and "Too few" not in verdict["says"]
    for own in verdict["machines"]:
        assert own["predicting_us"]["lru"] == own["predicting_us"]["perfect"] == 0 < own["predicting_us"]["default"]
    with (folder / "break_even.csv").open() as file:
        lines = list(csv.DictReader(file))
    points = json.loads((folder / "break_even.json").read_text())["points"]
    assert len(lines) == len(points) == document["atlas_points"] == 36
    assert tuple(lines[0]) == COLUMNS
    assert {p["handler"] for p in points} <= set(MISSES)
    assert sum(p["recall_needed"] is None for p in points) == document["never_pays"]
    rows = table[table["experiment"] == "prefetch_break_even"]
    needed_rows = rows[rows["metric"] == "recall_needed"]
    assert needed_rows.groupby("case").size().to_dict() == {"calibrated": 18, "sure": 18} and rows["simulated"].all()


def test_break_even_is_the_last_crossing() -> None:
    assert needed((0.0, 0.5, 1.0), (-0.1, 0.0, 0.01)) == pytest.approx(0.75)  # 0.5 % lies between 0 and 1 %
    assert needed((0.0, 0.5, 1.0), (0.01, 0.02, 0.03)) == 0.0
    assert np.isnan(needed((0.0, 0.5, 1.0), (0.1, 0.1, 0.0)))
    assert needed((0.0, 0.5, 1.0), (0.1, -0.045, 0.055)) == pytest.approx(0.75)


def test_the_atlas_machine_is_a_link_and_a_compute_time() -> None:
    machine = machine_at(25.0, 80.0)
    assert machine.link_rate == 25e9 and machine.launch_s == pytest.approx(80e-6)
    assert machine_at(200.0, 80.0).link_rate == 200e9  # host memory never narrows the link that is asked for


def test_decisions_that_do_not_count_time_serve_every_machine(tmp_path: Path) -> None:
    parts = split(TRACE)
    court = Court(TRACE.select(parts.scored), {"gate_lookahead": make("gate_lookahead", tmp_path).fit(TRACE, parts)})
    slots = slots_of(TRACE, 0.25)
    shared, timed = Arm("gate_lookahead", "top_k"), Arm("gate_lookahead", "budgeted")
    assert court.decided(shared, slots, "h200", COST) is court.decided(shared, slots, "rtx4090", COST)
    assert court.decided(timed, slots, "h200", COST) is not court.decided(timed, slots, "rtx4090", COST)
    plain = replay(court.trace, court.policy(BASELINE), PoolConfig(slots=slots), reset="sequence", decisions=True)
    assert plain.decisions is not None
    assert np.array_equal(court.decided(BASELINE, slots, "h200", COST).decisions.codes, plain.decisions.codes)
    assert court.recall(ORACLE) == 1.0 > court.recall("gate_lookahead") > 0.5


def test_few_sequences_are_no_verdict(tmp_path: Path) -> None:
    few = TRACE.select(np.arange(4))
    fitted = {name: make(name, tmp_path).fit(TRACE) for name in ("gate_lookahead", "linear")}
    verdict = judge(Court(few, fitted), 0.25, ("rtx4090",), COST)
    assert {cell["verdict"] for own in verdict["machines"] for cell in own["against"].values()} == {"cannot tell"}
    assert not verdict["pays"] and "Too few" in verdict["says"]


def test_differences_of_a_panel_are_corrected_together(found: tuple[pd.DataFrame, dict[str, Any], Path]) -> None:
    table = found[0]
    saved = table[(table["metric"] == "tpot_saved") & (table["machine"] == FEW[0])]
    base = table[(table["metric"] == "tpot") & (table["machine"] == FEW[0]) & (table["case"] == "none")]["value"].iloc[
        0
    ]
    least = 2 / 10_001  # of one difference alone, with as many samples
    assert saved["p_value"].min() >= len(saved) * least * 0.99
    for value, low, high, p, said in zip(*(saved[c] for c in ("value", "lo", "hi", "p_value", "verdict")), strict=True):
        clear = p < 0.05 and (low > 0.005 * base or high < -0.005 * base)
        assert said == (("better" if value > 0 else "worse") if clear else "cannot tell")
    assert set(saved["verdict"]) > {"cannot tell"}


def test_what_moved_and_what_no_longer_waits(found: tuple[pd.DataFrame, dict[str, Any], Path]) -> None:
    table = found[0]
    none = table[(table["experiment"] == "prefetch_time") & (table["case"] == "none") & (table["machine"] == FEW[0])]
    parts = split(TRACE)
    scored = TRACE.select(parts.scored)
    plain = replay(scored, Lru(), PoolConfig(slots=slots_of(scored, 0.25)), reset="sequence")
    passes = len(np.unique(scored.passes))
    size = float(yamls("cost")[COST]["expert_bytes"]["value"])
    (loaded,) = none[none["metric"] == "bytes_loaded"]["value"]
    assert loaded == pytest.approx(plain.demand_loads * size / passes)  # prompts are passes as well
    stall = table[table["metric"] == "stall_saved"].set_index(["machine", "predictor", "case", "policy"])["value"]
    saved = table[table["metric"] == "tpot_saved"].set_index(["machine", "predictor", "case", "policy"])["value"]
    assert np.allclose(stall.astype(float), saved.astype(float), rtol=1e-6)  # nothing but stalls differs


def scored_court(tmp_path: Path, **options: Any) -> Court:
    parts = split(TRACE)
    fitted = {name: make(name, tmp_path).fit(TRACE, parts) for name in ("gate_lookahead", "linear")}
    return Court(TRACE.select(parts.scored), fitted, **options)


def test_the_default_loses_where_predicting_takes_longer_than_it_saves(tmp_path: Path) -> None:
    free = judge(scored_court(tmp_path), 0.25, FEW, COST)
    dear = judge(scored_court(tmp_path, predicting={"linear": Work(1e-2)}), 0.25, FEW, COST)
    assert set(dear["outcome"].values()) == {"lost"} and not dear["won"] and not dear["pays"]
    assert "is not shown to beat" in dear["says"] and "loses to one of them on 3" in dear["says"]
    for own, cheap in zip(dear["machines"], free["machines"], strict=True):
        assert own["against"]["lru"]["verdict"] == "worse"
        assert own["affordable_us"] == pytest.approx(cheap["affordable_us"]) and own["predicting_us"]["default"] > 9e3
        extra = own["tpot_s"]["default"] - cheap["tpot_s"]["default"]
        assert extra == pytest.approx(1e-2 * TRACE.layers) and own["tpot_s"]["lru"] == cheap["tpot_s"]["lru"]


def test_no_verdict_on_documents_the_default_was_chosen_on(tmp_path: Path) -> None:
    made = judge(scored_court(tmp_path, predicting={"linear": Work(1e-2)}), 0.25, FEW, COST, seen=True)
    assert {c["verdict"] for own in made["machines"] for c in own["against"].values()} == {"cannot tell"}
    assert not made["pays"] and "chosen on these documents" in made["says"]


def test_a_gain_within_the_margin_is_none() -> None:
    assert worded(Interval(0.02, 0.011, 0.03), 0.001, 0.01, 20) == "better"
    assert worded(Interval(0.02, 0.009, 0.03), 0.001, 0.01, 20) == "cannot tell"
    assert worded(Interval(-0.02, -0.03, -0.011), 0.001, 0.01, 20) == "worse"
    assert worded(Interval(0.02, 0.011, 0.03), 0.001, 0.01, 7) == "cannot tell"
    assert worded(Interval(0.02, 0.011, 0.03), 0.06, 0.01, 20) == "cannot tell"


def test_predicting_for_a_wider_model_reads_a_wider_map() -> None:
    cost = cost_of(yamls("cost")[COST], TRACE.layers)
    where = machine("rtx4090")
    assert hidden_of(cost) == pytest.approx(2880)
    wide = Work(1e-5, 1e4).seconds(where, cost, TRACE)
    assert wide == pytest.approx(1e-5 + 1e4 * (2880 / HIDDEN - 1) / where.cpu_bytes_per_s)
    assert Work(1e-5).seconds(where, cost, TRACE) == 1e-5
    assert Work(1e-5, 1e4).seconds(where, experts_only(4, (64,) * 4), TRACE) == 1e-5


def test_a_state_that_is_read_beside_the_routers_choice_costs_a_wait() -> None:
    trace, where, cost = learnable_trace(), machine("h200"), cost_of(yamls("cost")[COST], 4)
    once, twice = (Work(1e-6, readbacks=n).seconds(where, cost, trace) for n in (0, 1))
    assert twice - once == pytest.approx(where.sync_s) and where.sync_s > 0


def test_what_loads_nothing_never_pays_in_the_atlas(monkeypatch: pytest.MonkeyPatch) -> None:
    few = TRACE.select(np.arange(3))
    grid = Grid((6.0, 25.0), (100.0,), (0.25,), ("lru", "joint_forecast"), (1,), (0.3, 1.0))
    real = atlas(few, grid)
    monkeypatch.setattr(break_even, "Threshold", lambda *_, **__: NoPrefetch())
    idle = atlas(few, grid)
    assert all(
        p["best_saved"] == 0.0 and np.isnan(p["recall_needed"]) for p in idle
    )  # what eviction gains is not counted
    assert any(p["tpot_evict_us"] < p["tpot_none_us"] for p in idle if p["policy"] == "joint_forecast")
    assert any(p["best_saved"] > 0 for p in real)


def test_who_is_calibrated_loads_nothing_below_one_half() -> None:
    """And who is sure loads all that it names, right or wrong; at a recall of 1 they say the same."""
    few = TRACE.select(np.arange(3))
    grid = Grid((6.0,), (1600.0,), (0.25,), ("lru",), (1,), (0.3, 0.4))
    sure, calibrated = atlas(few, grid)
    assert not sure["calibrated"] and calibrated["calibrated"]
    assert (
        calibrated["best_saved"] == calibrated["worst_saved"] == 0.0
        and calibrated["tpot_perfect_us"] == calibrated["tpot_none_us"]
    )
    assert sure["worst_saved"] < min(0.0, sure["best_saved"]) and sure["tpot_perfect_us"] != sure["tpot_none_us"]
    one, other = atlas(few, replace(grid, policies=("joint_forecast",), recalls=(1.0,)))
    assert {k: v for k, v in one.items() if k != "calibrated"} == {k: v for k, v in other.items() if k != "calibrated"}


def test_the_verdict_in_words() -> None:
    assert " beats " in sentence(dict.fromkeys("abc", "won") | {"d": "lost"}, 20)
    unsure = sentence({"a": "won", "b": "cannot tell", "c": "lost"}, 20)
    assert "is not shown to beat" in unsure and "cannot be told on 1" in unsure and "does not beat" not in unsure
    assert outcome(["better", "cannot tell"]) == "cannot tell" and outcome(["better", "worse"]) == "lost"
    assert outcome(["better"] * 3) == "won"


def test_the_figures_say_what_they_cannot(found: tuple[pd.DataFrame, dict[str, Any], Path]) -> None:
    assert "8 of 128" in prefetch_break_even.GUIDE and "top-8" in prefetch_break_even.MARK
    table = found[0].assign(lo=1.0, verdict="cannot tell")  # an interval of its own tells nothing
    for said, bold in ((table, 0), (table.assign(verdict="better"), (table["metric"] == "tpot_saved").sum())):
        figure = Figure()
        prefetch_tpot.draw(said, figure)
        assert sum(text.get_fontweight() == "bold" for axis in figure.axes for text in axis.texts) == bold
