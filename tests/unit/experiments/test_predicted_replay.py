"""`rgpu replay predictor=...`: loads ahead, what became of them, and their time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rgpu.experiments.replay import run
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
