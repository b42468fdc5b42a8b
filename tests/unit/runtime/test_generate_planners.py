"""`rgpu generate` with every planner: live decisions and their replay agree, and the text is the resident model's."""

from pathlib import Path

import pytest

import rgpu.conf
from tests.live_models import build
from tests.unit.runtime.generating import generate, with_tokenizer
from tests.unit.runtime.test_before_attention import recorded

PLANNERS = sorted(p.stem for p in (Path(rgpu.conf.__file__).parent / "planner").glob("*.yaml"))
pytestmark = pytest.mark.usefixtures("stores")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(build("qwen3_moe", tmp_path_factory.mktemp("planned")))


@pytest.mark.parametrize("policy", ["lru", "joint_forecast"])
@pytest.mark.parametrize("planner", PLANNERS)
def test_live_and_replay_agree(folder: Path, planner: str, policy: str) -> None:
    got = generate(
        folder, "predictor=gate_lookahead", f"planner={planner}", f"policy={policy}", "pool.slots=4", "verify=true"
    )
    assert got["identical_tokens"] is got["identical_logits"] is got["identical_decisions"] is True
    assert got["loads"] == got["demand_loads"] + got["proactive_loads"]


@pytest.mark.parametrize(("planner", "policy"), [("budgeted", "lru"), ("expected_value", "joint_forecast")])
def test_a_forecast_before_attention(folder: Path, tmp_path: Path, planner: str, policy: str) -> None:
    path = tmp_path / "before.safetensors"
    recorded(folder, path)
    got = generate(
        folder, "predictor=pre_attention", "predictor.model=null", "predictor.epochs=1", f"calibration.trace={path}",
        f"planner={planner}", f"policy={policy}", "pool.slots=4", "max_new_tokens=12", "verify=true",
    )  # fmt: skip
    assert got["identical_tokens"] is got["identical_logits"] is got["identical_decisions"] is True
    assert got["proactive_loads"] > 0 and got["failed"] == []


def test_misses_divided_beside_prefetch_in_one_pool(folder: Path) -> None:
    """A prompt of several waves whose loads ahead give away slots that the event's own misses are still to be copied into."""
    prompts = "prompt=[The state of the Union is a long text about many things,def f of x return x and one]"
    got = generate(
        folder, "predictor=gate_lookahead", "planner.width=4", "pool.scope=global", "pool.slots=10", "pool.miss=split",
        "max_new_tokens=6", "verify=true", prompts,
    )  # fmt: skip
    assert got["identical_tokens"] is got["identical_logits"] is got["identical_decisions"] is True
