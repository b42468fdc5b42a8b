"""Bytes said before they are taken: of a fitted predictor, and of a training that is refused."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.predictors import room
from rgpu.predictors.linear import Linear
from rgpu.predictors.low_rank import LowRank
from rgpu.predictors.mlp import Mlp
from rgpu.predictors.pre_attention import PreAttention
from rgpu.replay.stream import routing_events, tell
from rgpu.traces.trace import Trace, TraceHeader
from rgpu.types import MoEShape
from tests.predicting import FOLDER, learnable_trace, make

NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem not in ("oracle", "boosted_trees"))
HUGE = MoEShape(94, 128, 8, 4096, (), tuple(range(94)))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_expected_is_what_is_held(name: str, tmp_path: Path) -> None:
    trace = learnable_trace(sequences=4)
    predictor = make(name, tmp_path)
    expected = predictor.expected_bytes(trace.shape)
    predictor.fit(trace)
    held = predictor.held_bytes()
    assert held >= sum(t.nbytes for t in predictor.tensors_.values())
    assert expected in (None, held)
    assert (expected is None) == (
        name
        in (
            "ensemble",
            "history_gru",
            "history_transformer",
            "ngram",
            "popularity_domain",
            "similar_sequences",
            "token_id",
        )
    )


@pytest.mark.parametrize(("name", "given"), [("linear", {}), ("low_rank", {}), ("mlp", {"model": None})])
def test_maps_that_are_kept_are_counted(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    trace = learnable_trace(sequences=2)
    predictor = make(name, tmp_path, **given).fit(trace)
    tell(predictor, trace)
    for event in routing_events(trace.select(np.array([0]))):
        predictor.observe(event)
        predictor.predict()
    kept = [*predictor._maps.values(), *getattr(predictor, "_heads", {}).values()]
    derived = sum(array.nbytes for pair in kept for array in pair)
    assert predictor._derived_bytes() >= derived > 0
    if name != "low_rank":  # whose last maps are folded into the routers' where these are known
        assert predictor._derived_bytes() == derived


def test_a_huge_model_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda: 16 << 30)
    ids = np.tile(np.arange(8, dtype=np.uint8), (4, 94, 1))
    metas: list[dict[str, Any]] = [{"document": "a"}, {"document": "b"}]
    header = TraceHeader("huge", 128, 8, list(range(94)), sequences=metas)
    hidden = np.broadcast_to(np.zeros(1, np.float16), (4, 94, 4096))
    place = np.array([0, 1, 0, 1], np.int32)
    trace = Trace(header, ids, np.array([0, 2, 4]), place, np.arange(4, dtype=np.int32), hidden=hidden)
    began = time.perf_counter()
    with pytest.raises(
        InputError, match=r"linear: got 25 GiB to train for 94 layers of 128 experts, hidden size 4096"
    ) as told:
        Linear().fit(trace)
    assert "16 GiB that are free; set predictor=low_rank" in str(told.value) and "\n" not in str(told.value)
    monkeypatch.setattr(room, "free_bytes", lambda: 1 << 30)
    with pytest.raises(InputError, match=r"mlp: got .* expected at most the 1 GiB"):
        Mlp(width=512).fit(trace)
    assert time.perf_counter() - began < 2


def test_a_refusal_names_settings_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting that the line names is one of this predictor's, and less of it takes less."""
    trace = learnable_trace()
    monkeypatch.setattr(room, "free_bytes", lambda: 1)
    for kind in (Linear, PreAttention, LowRank, Mlp):
        predictor: Any = kind()
        named = set(re.findall(r"predictor\.(\w+)", _refusal(predictor, trace).split("; ")[-1]))
        assert named and named <= set(predictor.params()), kind
    own = _refusal(PreAttention(), trace)
    assert "or predictor.kept_gib, or where there are hidden states predictor=low_rank" in own
    shape, tokens = MoEShape(8, 32, 4, 256), 30_000
    less = PreAttention(kept_gib=0)
    assert less.kept_gib == 0 and less.training_bytes(shape, tokens) < PreAttention().training_bytes(shape, tokens)


def _refusal(predictor: Any, trace: Trace) -> str:
    with pytest.raises(InputError, match="that are free; set ") as told:
        predictor.fit(trace)
    return str(told.value)


def test_a_low_rank_probe_of_a_huge_model_takes_far_less() -> None:
    small, large = LowRank().training_bytes(HUGE), Linear().training_bytes(HUGE, 1)
    assert small < large / 50
    assert Linear(horizon=1).training_bytes(HUGE, 1) >= 17 * 94 * 4096**2  # whitening does not know the horizon
    more = Linear(kept_gib=2).training_bytes(MoEShape(8, 32, 4, 256), 1000)
    assert more - Linear(kept_gib=0).training_bytes(MoEShape(8, 32, 4, 256), 1000) == 4 * 8 * 1000 * 256


def test_what_is_free_is_the_least_of_all_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.resource, "getrlimit", lambda which: (-1, -1))
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert room.free_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert room.free_bytes() == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    assert room.free_bytes() == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\nfile 500000\nfile_mapped 7\n")
    assert room.free_bytes() == 1500000
    (tmp_path / "memory.stat").write_text("anon 5\nfile 500000\nshmem 200000\nfile_mapped 7\n")
    assert room.free_bytes() == 1300000  # what lies in a file system in memory is not given back
    monkeypatch.setattr(room.resource, "getrlimit", lambda which: (10, 10))
    assert room.free_bytes() == 0
