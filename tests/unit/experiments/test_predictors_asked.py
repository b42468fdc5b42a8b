"""What the suite of predictors is asked for: every part refuses what there is not, in a line, before anything runs."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from rgpu.errors import ConsistencyError, InputError
from rgpu.experiments.reproduce import run as reproduce
from rgpu.experiments.study.choosing import GRIDS
from rgpu.experiments.suites import predictors as suite
from rgpu.experiments.suites.predicting import asked, live
from rgpu.experiments.suites.predicting.fitting import Bench, names
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.traces.storage import save_trace
from tests.predicting import learnable_trace

BOTH = ["gate_lookahead", "linear"]
WRONG: list[dict[str, Any]] = [
    *({"only": only, "families": ["foo"]} for only in (None, *asked.PARTS)),
    *({"only": only, "families": "markov"} for only in (None, *asked.PARTS)),
    *({"only": only, "families": [*BOTH, *BOTH]} for only in (None, *asked.PARTS)),
    {"only": None, "families": ["linear"]},
    {"only": "live", "families": ["linear"]},
    {"only": "choices", "families": ["popularity"]},
    {"only": "recall"},
    {"only": "trace"},
    {"only": "live", "repeats": 0},
    *(
        {"only": only, "links": links}
        for only in (None, "live")
        for links in (["fast"], [0.1, 0.1], [float("inf")], [float("nan")], [True], [0], 0.5, "fast")
    ),
    *({"only": "live", "shares": shares} for shares in (["half"], [0.5, 0.5], [1.5], [], 0.5)),
]


@pytest.mark.parametrize("given", WRONG, ids=str)
def test_every_part_refuses_in_a_line(given: dict[str, Any]) -> None:
    cfg = OmegaConf.create({"out": "nowhere", "traces": "nowhere", "quick": True, "seed": 0, "predicting": given})
    with pytest.raises(
        InputError, match=r"^predicting\.(only|families|links|shares|repeats|trace): got .*; expected"
    ) as told:
        suite.run(cfg)
    assert "\n" not in str(told.value) and "/" not in str(told.value).replace("GB/s", "").replace("conf/predictor", "")


def test_what_is_asked_where_nothing_is_said() -> None:
    assert asked.check({}) == names() and asked.check({"only": "trace", "trace": "x"}) == names()
    assert asked.check({"only": "live"}) == names() and asked.check({"only": "choices"}) == list(GRIDS)
    assert asked.check({"families": BOTH, "links": [1, 0.25], "repeats": 3}) == BOTH
    assert asked.speeds_of({"links": [1, 0.25]}) == [1, 0.25] and asked.speeds_of({}) == list(asked.LINKS)


def test_the_command_ends_with_two(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["suite=predictors", "predicting.only=trace", "predicting.families=[foo]", f"out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["rgpu reproduce", *words])
    with pytest.raises(SystemExit) as end:
        reproduce.main()
    assert end.value.code == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert "predicting.families: got foo; expected some of conf/predictor" in lines[-1] and len(lines) == 1


@pytest.mark.parametrize(("families", "sequences"), [(["linear"], 12), (["markov"], 1)])
def test_a_trace_that_no_asked_family_can_be_judged_on(tmp_path: Path, families: list[str], sequences: int) -> None:
    path = save_trace(learnable_trace(sequences=sequences), tmp_path / "mine.safetensors")
    given = {"only": "trace", "families": families, "trace": str(path)}
    cfg = OmegaConf.create({"out": str(tmp_path), "quick": True, "seed": 0, "predicting": given})
    with pytest.raises(InputError, match=rf"predicting.families: got none that mine.* \({families[0]}: .*; expected"):
        suite.run(cfg)


def test_live_scores_nothing_that_calibrates(tmp_path: Path) -> None:
    trace = learnable_trace()
    material = Material(Subject("toy", "", trace, trace, trace.select(np.array([0]))), "model")
    with pytest.raises(ConsistencyError, match="predicting.only=live: 1 of 1 scored sequences also calibrate"):
        live.run(Bench(tmp_path, True, []), material, material.subject.scored, live.QUICK, 0, False)
