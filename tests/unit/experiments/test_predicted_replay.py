"""`rgpu replay predictor=...`: loads ahead, what became of them, and their time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rgpu.experiments.replay import run
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.previous_token import PreviousToken
from rgpu.traces.split import split
from rgpu.traces.storage import save_trace
from tests.predicting import learnable_trace, write_checkpoint

Replay = Callable[..., dict[str, Any]]


@pytest.fixture
def replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Replay:
    save_trace(learnable_trace(), tmp_path / "toy.safetensors")
    model = write_checkpoint(tmp_path / "model")

    def replayed(*words: str) -> dict[str, Any]:
        path = f"trace.path={tmp_path / 'toy.safetensors'}"
        given = [w.replace("MODEL", str(model)) for w in words]
        monkeypatch.setattr("sys.argv", ["replay", path, "pool.slots=4", "replay.reset=sequence", *given])
        run.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    return replayed


def test_loads_are_followed_and_timed(replayed: Replay) -> None:
    plain = replayed()
    got = replayed("predictor=gate_lookahead", "predictor.model=MODEL", "hardware=rtx4090")
    said = got["prefetch"]
    assert (said["predictor"], said["planner"]) == ("gate_lookahead", "top_k")
    assert said["useful"] == got["prefetch_hits"] > 0 and said["wasted"] == got["wasted"]
    assert said["useful"] + said["wasted"] + said["pending"] == got["proactive_loads"]
    assert 0 <= said["harmful"] <= got["demand_loads"]
    assert got["hits"] > plain["hits"] and got["tokens"] == plain["tokens"] and "prefetch" not in plain
    assert got["time"]["bytes_useful"] + got["time"]["bytes_late"] > 0


def test_a_learner_is_fitted_on_the_other_half_and_an_oracle_knows_the_trace(replayed: Replay) -> None:
    learnt = replayed("predictor=previous_token", "planner=threshold", "planner.threshold=0.3", "policy=joint_forecast")
    assert learnt["calibration_sequences"] == 3 and learnt["policy"] == "joint_forecast"
    known = replayed("predictor=oracle", "planner.width=2")
    assert known["calibration_sequences"] == 0
    assert known["prefetch"]["useful"] > 0 == known["prefetch"]["wasted"]


def test_a_saved_predictor_is_not_scored_on_what_trained_it(
    replayed: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = learnable_trace()
    parts = split(trace)
    PreviousToken().fit(trace, parts).save(tmp_path / "half")
    own, plain = replayed(f"calibration.predictor={tmp_path / 'half'}"), replayed("calibration.share=0.5")
    assert (own["sequences"], own["prefetch"]["left_out"]) == (3, 3)
    assert own["tokens"] == plain["tokens"] and own["prefetch"]["useful"] > 0
    again = replayed(f"calibration.predictor={tmp_path / 'half'}", "calibration.share=0.5")
    assert again["hits"] == own["hits"] and again["split"] == parts.digest and again["prefetch"]["left_out"] == 0
    fresh = learnable_trace(seed=1)  # other text, but three of its documents trained
    save_trace(fresh, tmp_path / "toy.safetensors")
    assert replayed(f"calibration.predictor={tmp_path / 'half'}")["sequences"] == 3

    PreviousToken().fit(fresh).save(tmp_path / "whole")
    header = tmp_path / "half.json"
    said = json.loads(header.read_text())
    del said["schema"]["documents"]
    header.write_text(json.dumps(said))
    for name, line in (
        ("whole", "6 sequences that previous_token was all fitted on"),
        ("half", "does not say which text"),
    ):
        with pytest.raises(SystemExit) as stop:
            replayed(f"calibration.predictor={tmp_path / name}")
        err = capsys.readouterr().err
        assert stop.value.code == 2 and line in err and err.count("\n") == 1


def test_a_saved_predictor_that_learns_nothing_is_replayed_on_everything(replayed: Replay, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    GateLookahead(model=str(model)).fit(learnable_trace()).save(tmp_path / "gates")
    found = replayed(f"calibration.predictor={tmp_path / 'gates'}")
    assert found["sequences"] == 6 and found["prefetch"]["left_out"] == 0 < found["prefetch"]["useful"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("policy=belady", "predictor=oracle"), "knows the future"),
        (("predictor=oracle", "calibration.predictor=x"), "predictor and calibration.predictor"),
    ],
)
def test_mistakes_are_one_line(
    replayed: Replay, words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        replayed(*words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and line in err and err.count("\n") == 1
