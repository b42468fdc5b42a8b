"""`rgpu reproduce suite=validation`: errors and verdicts by hand, and one tiny run from live passes to the page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from rgpu.errors import InputError
from rgpu.experiments.benching.live_events import Configuration
from rgpu.experiments.reproduce import SUITES, suite_named
from rgpu.experiments.suites import validation
from rgpu.experiments.suites.validating import judging
from rgpu.experiments.suites.validating.page import sentence
from rgpu.experiments.suites.validating.running import check_unseen, validated
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.results.rows import read
from rgpu.runtime.generation import run_greedy
from rgpu.runtime.session import OffloadSession
from rgpu.traces.storage import save_trace
from tests.live_models import build, prompts
from tests.unit.runtime.generating import WORDS, with_tokenizer


def test_a_time_is_the_median_repeat_of_each_pass() -> None:
    quiet, busy = np.array([1.0, 3.0]), np.array([9.0, 3.0])
    found = judging.measured([quiet, busy, quiet])
    assert found.tpot_s == 2.0  # the busy pass is one of three
    assert found.repeats_s == (2.0, 6.0, 2.0)
    assert found.spread == pytest.approx(np.std([2.0, 6.0, 2.0], ddof=1) / 2.0)
    assert judging.measured([quiet]).spread == 0.0
    with pytest.raises(InputError, match="2 repeats of different passes"):
        judging.measured([quiet, quiet[:1]])


def test_an_error_has_a_sign() -> None:
    assert judging.error_of(1.1, 1.0) == pytest.approx(0.1)
    assert judging.error_of(0.9, 1.0) == pytest.approx(-0.1)


def test_the_target_is_ten_percent_or_twice_the_spread() -> None:
    errors = [0.08, -0.08, 0.02] * 4
    found = judging.verdict(errors, [0.01] * 12)
    assert (found["verdict"], found["target"], found["target_rests_on"]) == (judging.MET, 0.1, "10 %")
    assert (found["median_error"], found["largest_error"]) == (pytest.approx(0.08), pytest.approx(0.08))
    assert found["within_10_percent"] == 1.0
    missed = judging.verdict([2 * e for e in errors], [0.01] * 12)
    assert (missed["verdict"], missed["median_error"]) == (judging.MISSED, pytest.approx(0.16))
    noisy = judging.verdict([2 * e for e in errors], [0.09] * 12)
    assert (noisy["verdict"], noisy["target"]) == (judging.MET_IN_NOISE, pytest.approx(0.18))
    assert "twice the spread" in noisy["target_rests_on"]
    few = judging.verdict(errors[:11], [0.01] * 11)
    assert few["verdict"] == judging.TOO_FEW
    assert sentence(missed).startswith("Target missed: median error of TPOT 16.0% over 12 configurations")
    with pytest.raises(InputError, match="got 0 errors"):
        judging.verdict([], [])


def test_what_calibrates_is_not_validated() -> None:
    check_unseen([Configuration("lru", 8), Configuration("rotary", 4, "cpu", 4)], (12, 20))
    for bad in (Configuration("fifo", 8), Configuration("lru", 12)):
        with pytest.raises(InputError, match="which calibrate"):
            check_unseen([bad], (12, 20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, texts and the trace that policies calibrate on, laid out as the assets are."""
    root = tmp_path_factory.mktemp("validation")
    model = with_tokenizer(build("qwen3_moe", root / "model"))
    (root / "heldout").mkdir()
    words = [w for w in WORDS if w.startswith("w")]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 12)) for _ in range(6)]
    (root / "heldout" / "words.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    (root / "traces").mkdir()
    with OffloadSession.open(
        model,
        lambda shape: Controller(Lru(), shape, PoolConfig("layer", 4)),
        hidden=True,
        threads=1,
        cache=root / "stores",
    ) as session:
        run_greedy(session.model, prompts(1), 8, 0, logits=False)
        save_trace(session.trace(), root / "traces" / "reference_hidden.safetensors")
    return root


def config(folder: Path, *words: str) -> Any:
    size = "{slots: [4], policies: [on_demand, lru, rotary], handlers: [fetch, cpu], batches: [1, 2], "
    size += "calibration_slots: [6, 9], prompt_tokens: 8, new_tokens: 10, repeats: 2, patience_s: 0}"
    return compose("reproduce", [
        "suite=validation", "quick=true", f"model={folder / 'model'}", f"traces={folder / 'traces'}",
        f"heldout={folder / 'heldout'}", f"out={folder / 'out'}", f"validation.brief={size}", *words,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch, initialize_config_module("rgpu.conf", version_base="1.3"):
        patch.setenv("RGPU_CACHE", str(folder / "stores"))
        found: dict[str, Any] = json.loads(json.dumps(validation.run(config(folder)), default=float))
        return found


def test_decisions_agree_and_every_configuration_is_judged(document: dict[str, Any]) -> None:
    assert document["failed"] == [] and document["decisions_identical"]
    assert len(document["points"]) == document["configurations"] == 12
    for point in document["points"]:
        assert point["identical_decisions"] and len(point["repeats_s"]) == 2
        assert point["predicted_s"] > 0 and point["measured_s"] > 0
        assert point["error"] == pytest.approx(point["predicted_s"] / point["measured_s"] - 1)
    assert document["verdict"] in (judging.MET, judging.MET_IN_NOISE, judging.MISSED)
    assert len(document["load_average"]) == 2
    seen = {(p["policy"], p["slots"]) for p in document["points"]}
    assert all((name.split(",")[0], 4) not in seen for name in document["calibrated_on"])


def test_rows_figure_profile_and_page_are_there(document: dict[str, Any], folder: Path) -> None:
    rows = read(document["rows"])
    assert set(rows["metric"]) >= {"tpot_s", "tpot_error", "tpot_spread", "hit_rate", "median_error", "median_spread"}
    assert len(rows[(rows["metric"] == "tpot_s") & (rows["case"] == "measured")]) == 12
    assert (
        not rows[rows["case"] == "measured"]["simulated"].any() and rows[rows["case"] == "predicted"]["simulated"].all()
    )
    page = (folder / "out" / "report.html").read_text()
    assert "CPU only" in page and document["verdict"] in page
    assert [f.suffix for f in sorted((folder / "out" / "figures").glob("validation_tpot*"))] == [".png", ".svg"]
    assert json.loads((folder / "out" / "validation.json").read_text())["verdict"] == document["verdict"]


def test_a_profile_of_before_is_taken_as_it_is(document: dict[str, Any], folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, initialize_config_module("rgpu.conf", version_base="1.3"):
        patch.setenv("RGPU_CACHE", str(folder / "stores"))
        words = (
            f"validation.profile={document['profile']}",
            f"out={folder / 'again'}",
            "validation.brief.policies=[lru]",
        )
        found = validation.run(config(folder, *words, "validation.brief.repeats=1"))
    assert found["verdict"] == judging.TOO_FEW and found["calibrated_on"] == ["this_machine, before this run"]
    assert (folder / "again" / "profile.yaml").read_bytes() == (folder / "out" / "profile.yaml").read_bytes()


def test_what_keeps_nothing_runs_once_whatever_the_slots(folder: Path) -> None:
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        size = config(folder, "validation.brief.slots=[4,5]").validation.brief
    found = validated(size)
    assert len(found) == 4 + 2 * 8 and len(set(found)) == len(found)
    size.handlers = ["zero_copy"]
    with pytest.raises(InputError, match=r"got 'zero_copy'; expected some of fetch, cpu"):
        validated(size)


def test_decisions_that_differ_are_a_failed_check(
    document: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = judging.replayed

    def wrong(bench: Any, run: Any) -> Any:
        found = right(bench, run)
        return judging.Replayed(run.config.slots != 4, found.hits, found.accesses, found.log)

    monkeypatch.setattr(judging, "replayed", wrong)
    monkeypatch.setenv("RGPU_CACHE", str(folder / "stores"))
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        words = (
            f"validation.profile={document['profile']}",
            f"out={folder / 'wrong'}",
            "validation.brief.policies=[lru]",
        )
        found = validation.run(config(folder, *words, "validation.brief.repeats=1", "validation.brief.batches=[1]"))
    assert found["failed"] == ["decisions of lru, 4 slots, fetch, batch 1", "decisions of lru, 4 slots, cpu, batch 1"]
    assert not found["decisions_identical"]


def test_the_suite_is_offered_like_the_others() -> None:
    assert suite_named("validation") == (validation.run, "results/validation")
    assert len({out for _, out in SUITES.values()}) >= 3
