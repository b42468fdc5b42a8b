"""Prefetching judged: the quick run on a tiny trace, the break-even point, and what the verdict says."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rgpu.experiments.study.break_even import COLUMNS, machine_at, needed
from rgpu.experiments.study.prefetch_time import BASELINE, COST, FEW, ORACLE, Arm, Court, slots_of
from rgpu.experiments.study.prefetch_verdict import OTHERS, judge, sentence
from rgpu.experiments.study.prefetching import run
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.simulate import MISSES
from rgpu.results.rows import Context, frame
from rgpu.traces.split import split
from tests.predicting import learnable_trace, make, write_checkpoint

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
    assert set(ends.columns) == {f"bytes_{n}" for n in ("useful", "late", "wasted", "cancelled", "pending", "harmful")}
    assert (ends[["bytes_useful", "bytes_late"]].sum(axis=1) > 0).any()


def test_the_document_has_a_verdict_and_the_atlas(found: tuple[pd.DataFrame, dict[str, Any], Path]) -> None:
    table, document, folder = found
    (verdict,) = document["verdicts"]
    assert document["simulated"] and verdict["simulated"] and verdict["timed_as"] == COST
    assert [own["machine"] for own in verdict["machines"]] == list(FEW)
    assert all(set(own["against"]) == set(OTHERS) for own in verdict["machines"])
    assert verdict["pays"] == (len(verdict["won"]) >= 3) and verdict["says"]
    with (folder / "break_even.csv").open() as file:
        lines = list(csv.DictReader(file))
    points = json.loads((folder / "break_even.json").read_text())["points"]
    assert len(lines) == len(points) == document["atlas_points"] == 18
    assert tuple(lines[0]) == COLUMNS
    assert {p["handler"] for p in points} <= set(MISSES)
    assert sum(p["recall_needed"] is None for p in points) == document["never_pays"]
    rows = table[table["experiment"] == "prefetch_break_even"]
    assert len(rows[rows["metric"] == "recall_needed"]) == 18 and rows["simulated"].all()


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


def test_the_verdict_in_words() -> None:
    assert "beats" in sentence(["a", "b", "c"], ["a", "b", "c", "d"], 20)
    assert "does not beat" in sentence(["a"], ["a", "b", "c"], 20)
