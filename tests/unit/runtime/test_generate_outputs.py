"""`rgpu generate`: its files, its figures in time, its text while it is made, hot profiles."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rgpu.errors import InputError
from rgpu.experiments.live_report import FillBar
from rgpu.replay.timing.timeline import TRACKS
from rgpu.runtime.executor import PoolExecutor
from rgpu.transfer.counts import Span
from rgpu.types import ExpertKey
from tests.live_models import EXPERTS, LAYERS, build
from tests.unit.runtime.generating import generate, with_tokenizer

pytestmark = pytest.mark.usefixtures("stores")


def test_telemetry_and_timeline(wide: Path, tmp_path: Path) -> None:
    rows, timeline = tmp_path / "new" / "passes.parquet", tmp_path / "run.json"
    made = generate(wide, "pool.slots=4", f"telemetry_out={rows}", f"timeline_out={timeline}", "verify=true")
    assert made["failed"] == []  # the checks' own passes are not in these files
    table = pd.read_parquet(rows)
    assert table["pass"].tolist() == list(range(len(made["token_ids"])))
    assert table["rows"].tolist() == [3, *[1] * (len(table) - 1)]
    for name in ("hits", "misses", "bytes_loaded"):
        assert table[name].sum() == made[name]
    assert made["ttft_s"] == pytest.approx(table["seconds"][0], abs=2e-6)
    assert made["tpot_s"] == pytest.approx(table["seconds"][1:].median(), abs=2e-6)
    assert made["tpot_s"] <= made["tpot_p95_s"] and 0 <= made["stall_s"] < made["seconds"]
    assert made["copied_bytes"]["demand"] + made["copied_bytes"]["ahead"] == made["bytes_loaded"]
    assert made["copies"] == made["loads"] and made["cancelled_copies"] == 0
    assert set(made["startup"]) == {"convert_s", "open_store_s", "dense_s", "fill_s"}
    events = json.loads(timeline.read_text())["traceEvents"]
    assert "wide" in events[0]["args"]["name"] and "miss=fetch" in events[0]["args"]["name"]
    tracks = [TRACKS[e["tid"]] for e in events if e["ph"] == "X"]
    assert tracks.count("link") == made["copies"] and tracks.count("device") == len(table) * (2 * LAYERS + 1)


def test_passes_as_json(wide: Path, tmp_path: Path) -> None:
    made = generate(wide, f"telemetry_out={tmp_path / 'passes.json'}")
    rows = json.loads((tmp_path / "passes.json").read_text())
    assert sum(row["hits"] for row in rows) == made["hits"]


def test_a_hot_profile_fills_the_slots_before_the_first_token(wide: Path, tmp_path: Path) -> None:
    hot = tmp_path / "hot.safetensors"
    cold = generate(wide, "pool.slots=5", f"profile_out={hot}")
    assert cold["fill_loads"] == 0
    warm = generate(
        wide, "pool.slots=5", f"profile={hot}", f"profile_out={tmp_path / 'again.safetensors'}", "verify=true"
    )
    assert warm["failed"] == [] and warm["token_ids"] == cold["token_ids"]
    assert 3 * LAYERS <= warm["fill_loads"] <= 5 * LAYERS
    assert warm["misses"] < cold["misses"] and warm["loads"] == warm["fill_loads"] + warm["demand_loads"]
    assert (tmp_path / "again.safetensors").read_bytes() == hot.read_bytes()  # the same run's own counts
    with pytest.raises(InputError, match="static_hot, which fills the pools itself"):
        own = tmp_path / "own.safetensors"
        generate(wide, "predictor=gate_lookahead", f"trace_out={own}")
        generate(wide, "policy=static_hot", f"calibration.trace={own}", f"profile={hot}")


def test_the_bar_of_the_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    def tqdm(total: int, **_: Any) -> Any:
        shown.append(SimpleNamespace(total=total, n=0, open=True))
        one = shown[-1]
        one.update, one.close = lambda n: setattr(one, "n", one.n + n), lambda: setattr(one, "open", False)
        return one

    monkeypatch.setattr("rgpu.experiments.live_report.tqdm", tqdm)
    sizes = SimpleNamespace(expert_bytes=[100, 100])
    cold: Any = SimpleNamespace(filled_first=0, shape=sizes)
    warm: Any = SimpleNamespace(filled_first=6, shape=sizes)
    bar, piece = FillBar(), Span(0.0, 1.0, ExpertKey(0, 0), 0, 0, "demand", 50)
    bar.expect(cold)
    bar(piece)
    assert shown == []
    bar.expect(warm)
    bar.expect(warm)  # a session builds its controller twice
    bar(piece)
    bar.close()
    bar.close()
    bar(piece)
    assert [(one.total, one.n, one.open) for one in shown] == [(600, 50, False)]


def test_text_as_it_comes_goes_to_stderr(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = generate(wide)
    assert capsys.readouterr().err.count("w") == 0
    made = generate(wide, "stream=true")
    out, err = capsys.readouterr()
    assert made["text"] == quiet["text"] and made["text"] + "\n" in err
    assert out == ""


def test_a_chat_template(wide: Path, tmp_path: Path) -> None:
    assert generate(wide)["prompt_tokens"] == [3]
    made = generate(wide, "chat=true", "prompt=['w1 w2 w3','w7']", "verify=true")
    assert made["prompt_tokens"] == [5, 3] and made["failed"] == []
    spelled = generate(wide, "prompt='w5 w1 w2 w3 w6'")
    assert made["token_ids"][0] == spelled["token_ids"]
    with pytest.raises(InputError, match=r"chat: got true.*no chat template.*set chat=false"):
        generate(with_tokenizer(build("olmoe", tmp_path)), "chat=true")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stream=true", "prompt=['w1','w2']"), "stream: got true with 2 prompts"),
        (("telemetry_out=rows.csv",), r"telemetry_out: got rows.csv; expected a name that ends in .parquet or .json"),
        (("timeline_out=run.txt",), "timeline_out"),
        (("profile_out=hot.json",), "profile_out"),
        (("profile=nowhere.safetensors",), "profile: got no file nowhere.safetensors"),
        (("max_new_tokens=0",), "max_new_tokens: got 0"),
    ],
)
def test_mistakes_before_a_model_is_opened(
    wide: Path, overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgpu.experiments.generate.OffloadSession", None)
    with pytest.raises(InputError, match=message) as raised:
        generate(wide, *overrides)
    assert "\n" not in str(raised.value)


def test_a_profile_of_another_model(wide: Path, tmp_path: Path) -> None:
    from rgpu.replay.hot_start import save_profile

    save_profile(tmp_path / "hot.safetensors", np.ones((LAYERS, EXPERTS + 1), np.int64), "other")
    with pytest.raises(InputError, match="the model's MoE layers and experts"):
        generate(wide, f"profile={tmp_path / 'hot.safetensors'}")


@pytest.mark.parametrize("at", [0, 3])
def test_memory_that_runs_out_in_the_middle_is_one_line(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At an event of the prompt or of a later token: nothing half-written, and the model's experts are let go."""
    calls, real = [0], PoolExecutor._event

    def failing(self: PoolExecutor, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > at * LAYERS:
            torch.empty(1 << 60, dtype=torch.uint8)
        return real(self, *arguments)

    monkeypatch.setattr(PoolExecutor, "_event", failing)
    threads = threading.active_count()
    with pytest.raises(InputError, match="got no memory for it .*; give fewer slots") as raised:
        generate(wide, "pool.slots=4", f"trace_out={tmp_path / 'trace.safetensors'}")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [] and threading.active_count() <= threads
