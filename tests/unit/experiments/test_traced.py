"""Prefetching on a trace of routed ids alone, in simulated time."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.suites import predictors as suite
from rgpu.experiments.suites.predicting import traced
from rgpu.traces.storage import save_trace
from tests.predicting import learnable_trace


def asked(folder: Path, **predicting: Any) -> Any:
    given = {"only": "trace", "families": ["markov", "linear"], **predicting}
    return OmegaConf.create({"out": str(folder), "quick": True, "seed": 0, "predicting": given})


def test_what_ids_alone_are_worth(tmp_path: Path) -> None:
    path = save_trace(learnable_trace(sequences=12), tmp_path / "mine.safetensors")
    found = suite.run(asked(tmp_path, trace=str(path)))
    assert "needs the array 'hidden'" in found["refused"]["mine"]["linear"]
    told = found["traced"]
    assert told["simulated"] and (told["trace"], told["timed_as"]) == ("mine", "gpt_oss_20b")
    arms = {(a["machine"], a["predictor"], a["planner"], a["policy"]) for a in told["arms"]}
    assert len(arms) == len(told["arms"]) == 3 * 2 * 3  # machines, predictors (the perfect one too), ways
    for one in told["arms"]:
        assert one["lo"] <= one["saved"] <= one["hi"] < 1
        assert (one["recall"] == 1) == (one["predictor"] == "oracle")
    by = {(a["machine"], a["predictor"]): a["saved"] for a in told["arms"] if a["policy"] == "joint_forecast"}
    assert all(by[machine, "oracle"] >= by[machine, "markov"] for machine in told["lru_tpot_s"])
    assert found["limits"] == [traced.LIMIT] and "layers of gpt_oss_20b whatever model" in traced.LIMIT
    assert Path(found["rows"]).is_file() and Path(found["report"]).is_file()


def test_without_a_trace_it_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"predicting.trace: got null; expected a trace"):
        suite.run(asked(tmp_path))
    assert "predicting.trace=PATH" in traced.ABSENT
