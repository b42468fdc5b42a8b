"""What is told of made-up standings of a live contest, and who competes on which text."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rgpu.errors import InputError
from rgpu.experiments.study.live_arms import AGAIN, PERFECT
from rgpu.experiments.study.live_contest import Standing, Table
from rgpu.experiments.study.live_engine import Link
from rgpu.experiments.study.live_verdict import HEAD, beating, judge, lines, rows, sentence
from rgpu.experiments.study.prefetch_time import BASELINE, FREE, Arm
from rgpu.experiments.study.prefetch_verdict import DEFAULT
from rgpu.experiments.study.stages import Stages
from rgpu.experiments.suites.predicting import live
from rgpu.experiments.suites.predicting.fitting import names
from rgpu.experiments.suites.predicting.live import record
from rgpu.experiments.suites.predicting.material import Material
from rgpu.results.rows import frame
from rgpu.traces.storage import save_trace
from tests.predicting import learnable_trace
from tests.result_rows import CONTEXT

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "live_prefetch.py"


def made(
    arm: Arm, factor: float, simulated: float = 1.0, texts: int = 10, noise: float = 0.01, wall: float = 1.0
) -> Standing:
    rng = np.random.default_rng(round(1e3 * factor))
    seconds_S = factor * np.linspace(0.2, 0.4, texts) * (1 + noise * rng.standard_normal(texts))
    sums = ("stall_s", "bytes_loaded", "bytes_decided", "bytes_wasted", "loads_ahead", "prefetch_hits", "late", "cancelled",
             "busy_s", "useful", "wasted", "pending", "harmful")  # fmt: skip
    return Standing(
        arm, seconds_S, wall * seconds_S, simulated * np.linspace(0.2, 0.4, texts), np.full(texts, 24.0), 0.012, 0.01,
        dict.fromkeys(sums, 1.0), 40.0, 20.0, 80.0,
    )  # fmt: skip


def table_of(*standings: Standing) -> Table:
    return Table(Link(0.1), 0.25, 8, standings, 1.0, 1.5, 1.8)


def test_verdicts_of_made_up_standings() -> None:
    arms = [
        made(BASELINE, 1.0),
        made(AGAIN, 1.001),
        made(FREE, 1.3, 1.2),
        made(DEFAULT, 0.85, 0.9),
        made(PERFECT[-1], 0.6),
    ]
    judged = judge(table_of(*arms))
    assert [a.get("verdict") for a in judged["arms"]] == [None, "cannot tell", "worse", "better", "better"]
    assert judged["arms"][0]["ratio"] == 1.0 and judged["arms"][3]["simulated_ratio"] == pytest.approx(0.9)
    assert judged["beats_lru"] == ["linear, expected_value + evict"] and judged["emulated"]
    assert judged["bound_of_lru_simulated"] == pytest.approx(1 / 3) and judged["resident_of_lru"] == pytest.approx(
        0.5, 0.05
    )
    said = sentence(judged)
    assert "of 2 live arms 1 are faster" in said and "1 slower" in said and "emulated link of 0.1 GB/s" in said
    assert "LRU against itself: " in said and said.count("with waits") == 2 and judged["control"] == "cannot tell"
    assert beating([a | {"verdict": "worse"} for a in judged["arms"][1:]]) == []
    found = frame(pa.concat_tables(rows(judged, CONTEXT, 32)))
    ratios = found[found["metric"] == "tpot_ratio"]
    assert len(ratios) == 2 * 5 + 2 and set(ratios[~ratios["simulated"]]["method"]) == {"live"}
    assert set(found["machine"]) == {"emulated link of 0.1 GB/s"} and set(found["capacity_share"]) == {0.25}
    walls = found[found["metric"] == "wall_ratio"]
    assert len(walls) == 5 + 1 and walls["lo"].notna().sum() == 5 and set(walls["method"]) == {"live"}
    assert (found["metric"] == "loads_late").sum() == 3  # of those that load ahead
    assert all(len(line) == len(HEAD) for line in lines(judged))
    index = {"figures": [{"name": "prefetch_live", "trace": "t", "files": ["a.svg"]}]}
    document = {"tables": [judged], "says": [said], "left_out": {"mlp": "takes 200 us an event, more than 100"}}
    entry = record(document, index, Path("f"), "nothing published")
    assert entry["tables"][1]["rows"] == [["mlp", "takes 200 us an event, more than 100"]]
    assert entry["files"] == ["f/a.svg"] and entry["numbers"]["t"]["criteria"][0]["holds"]
    assert entry["tables"][0]["title"] == "emulated link of 0.1 GB/s, 8 slots a layer"


def test_few_texts_tell_nothing() -> None:
    judged = judge(table_of(made(BASELINE, 1.0, texts=3), made(DEFAULT, 0.5, texts=3)))
    assert judged["arms"][1]["verdict"] == "cannot tell" and judged["beats_lru"] == []


def test_both_runs_of_lru_are_the_baseline() -> None:
    flat = [made(BASELINE, 1.06, noise=0), made(AGAIN, 0.94, noise=0), made(DEFAULT, 1.0, noise=0)]
    first, again, own = judge(table_of(*flat))["arms"]
    assert first["ratio"] == 1.0 and own["ratio"] == own["wall_ratio"] == pytest.approx(1.0)
    assert again["ratio"] == pytest.approx(0.94 / 1.06)  # the second over the first
    assert first["seconds_S"] == pytest.approx(np.linspace(0.2, 0.4, 10).tolist())


def test_where_lru_is_told_from_itself_nothing_is_told() -> None:
    arms = [made(BASELINE, 1.0), made(AGAIN, 1.0), made(DEFAULT, 0.5), made(FREE, 1.5)]
    assert [a.get("verdict") for a in judge(table_of(*arms))["arms"][2:]] == ["better", "worse"]
    for again in (made(AGAIN, 0.9), made(AGAIN, 1.0, wall=1.2)):  # by one measure is enough
        judged = judge(table_of(arms[0], again, *arms[2:]))
        assert {a["verdict"] for a in judged["arms"][2:]} == {"cannot tell"} and judged["beats_lru"] == []
        assert judged["control"] != "cannot tell" and "told apart, so nothing else is" in sentence(judged)


def test_only_what_is_told_with_and_without_waits_is_told() -> None:
    arms = [made(BASELINE, 1.0), made(AGAIN, 1.001), made(DEFAULT, 0.85, wall=1.2), made(FREE, 1.0, wall=0.8)]
    judged = judge(table_of(*arms))
    assert [a["verdict"] for a in judged["arms"][2:]] == ["cannot tell"] * 2 and judged["beats_lru"] == []
    assert judged["arms"][2]["wall_ratio"] == pytest.approx(1.02, 0.02) and judged["arms"][2]["wall_hi"] > 1.0


def test_many_arms_need_more_than_one() -> None:
    spread = np.array([-1.5, -1.0, -0.7, -0.4, -0.1, 0.1, 0.4, 0.7, 1.0, 1.5])
    base, own_S = made(BASELINE, 1.0, noise=0), 0.3 * (1 - 0.05 + 0.07 * spread)
    base = replace(base, seconds_S=np.full(10, 0.3), wall_S=np.full(10, 0.3))
    some = replace(base, arm=DEFAULT, seconds_S=own_S, wall_S=own_S)
    alone = judge(table_of(base, some))["arms"][1]
    assert alone["verdict"] == "better" and 0.01 < alone["p"] < 0.05
    same = [replace(base, arm=Arm(name, "top_k")) for name in ("linear", "markov", "mlp", "low_rank", "ngram")]
    beside = judge(table_of(base, some, *same))["arms"][1]
    assert beside["ratio"] == alone["ratio"] and beside["hi"] < 0.995
    assert beside["p"] == pytest.approx(6 * alone["p"]) and beside["verdict"] == "cannot tell"


def test_what_the_default_was_chosen_on_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judge(table_of(made(BASELINE, 1.0), made(DEFAULT, 0.5)), seen=True)
    assert judged["arms"][1]["verdict"] == "cannot tell" and "chosen on these documents" in sentence(judged)
    trace = learnable_trace(sequences=8)
    trace.token_ids = np.arange(trace.tokens, dtype=np.int32)  # no two sequences alike
    kept: list[tuple[list[str], bool]] = []

    def ran(*args: Any) -> tuple[list[pa.Table], dict[str, Any]]:
        kept.append(([m["document"] for m in args[2].header.sequences], args[-1]))
        return [CONTEXT.rows("tpot", "s", 1.0)], {}

    monkeypatch.setattr(live, "run", ran)
    parts = SimpleNamespace(name="toy", calibration=trace.select(np.arange(4)), scored=trace.select(np.arange(4, 8)))
    bench: Any = SimpleNamespace(quick=True)
    for name, chosen in (("some", np.array([0, 4, 5])), ("all", np.arange(8))):
        save_trace(trace.select(chosen), tmp_path / f"{name}.safetensors")
        live.live(bench, [Material(parts, "a model")], Stages(tmp_path, name), tmp_path / f"{name}.safetensors", {})  # type: ignore[arg-type]
    assert kept == [(["d6", "d7"], False), (["d4", "d5", "d6", "d7"], True)]


def test_who_is_left_out_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(name: str, *_: Any) -> str:
        if name == "token_id":
            raise InputError("got no tokens")
        return name

    monkeypatch.setattr(live, "cost_of", lambda name, *_: SimpleNamespace(us_lo=250.0 if name == "mlp" else 9.0))
    material: Any = SimpleNamespace(subject=SimpleNamespace(calibration=None))
    asked = ["gate_lookahead", "linear", "mlp", "online_head", "token_id"]
    for quick in (False, True):
        bench: Any = SimpleNamespace(names=asked, quick=quick, fitted=fitted)
        found, left_out = live.competing(bench, material, None)  # type: ignore[arg-type]
        assert found.keys() | left_out.keys() == set(names()) and found.keys().isdisjoint(left_out)
        assert left_out["markov"] == "not among predicting.families"
        if quick:
            assert list(found) == ["gate_lookahead", "linear"] and left_out["mlp"] == "has no part in the quick form"
            continue
        assert list(found) == ["gate_lookahead", "linear", "online_head"]
        assert left_out["mlp"] == "takes 250 us an event, more than 100" and left_out["token_id"] == "got no tokens"


def test_rows_that_are_kept_tell_the_verdict_again() -> None:
    spec = importlib.util.spec_from_file_location("live_prefetch", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    judged = judge(table_of(made(BASELINE, 1.0), made(AGAIN, 1.001), made(DEFAULT, 0.85, wall=1.1)))
    document = {
        "load_average": [1.0, 1.0],
        "quiet_runs": 1.0,
        "texts": 10,
        "steps": 24,
        "repeats": 1,
        "tables": [judged],
    }
    kept = script.rows_of(frame(pa.concat_tables(rows(judged, CONTEXT, 32))), document, "")
    by = {(r["metric"], r.get("policy"), r["method"]): r for r in kept if r.get("case") not in ("bound", "resident")}
    base, own = by["ratio", "lru", "live"], by["ratio", DEFAULT.policy, "live"]
    assert own["value"] == pytest.approx(sum(own["seconds_S"]) / sum(base["seconds_S"]), 1e-4)
    wall, base = by["wall_ratio", DEFAULT.policy, "live"], by["wall_ratio", "lru", "live"]
    assert wall["value"] == pytest.approx(sum(wall["wall_S"]) / sum(base["wall_S"]), 1e-4) and wall["lo"] < wall["hi"]
    assert "seconds_S" not in by["ratio", DEFAULT.policy, "replay"] and "stall" in {r["metric"] for r in kept}
