from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.errors import TraceError
from rgpu.predictors.linear import Linear
from rgpu.replay.prediction import evaluate
from rgpu.traces.shards import HiddenShards
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace, save_trace
from tests.predicting import learnable_trace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_trace(learnable_trace(), tmp_path / "t.safetensors", shard_bytes=4000)  # 41 rows a shard


def test_mapped_rows_are_those_in_memory(path: Path) -> None:
    whole, trace = load_trace(path).require("hidden", "test"), load_trace(path, stream=True)
    streamed: Any = trace.hidden
    assert isinstance(streamed, HiddenShards)
    assert streamed.shape == whole.shape and len(streamed) == len(whole)
    rows = np.array([150, 3, 3, 90, 41])
    assert np.array_equal(streamed[rows], whole[rows])
    assert np.array_equal(streamed[rows, 2], whole[rows, 2])
    assert np.array_equal(streamed[40:90], whole[40:90])
    assert np.array_equal(streamed[7], whole[7])
    assert np.array_equal(np.asarray(streamed), whole)
    assert streamed[np.zeros(0, np.int64), 1].shape == whole[:0, 1].shape
    part: Any = trace.select(np.array([4, 1])).hidden
    assert isinstance(part, HiddenShards)
    assert np.array_equal(part[:], load_trace(path).select(np.array([4, 1])).require("hidden", "test"))


def test_training_from_disk_is_training_from_memory(path: Path) -> None:
    whole, streamed = load_trace(path), load_trace(path, stream=True)
    parts = split(whole)
    first = Linear(epochs=2, kept_gib=0).fit(whole, parts)
    second = Linear(epochs=2, kept_gib=0).fit(streamed, parts)
    assert all(np.array_equal(first.tensors_[name], second.tensors_[name]) for name in first.tensors_)
    from_memory, from_disk = (evaluate(first, t.select(parts.scored)) for t in (whole, streamed))
    assert [r["value"] for r in from_memory] == [r["value"] for r in from_disk]


def test_broken_shards_are_refused(path: Path) -> None:
    shard = path.with_name("t.hidden-00001.safetensors")
    good = shard.read_bytes()
    shard.write_bytes(good[:-100])
    with pytest.raises(TraceError, match="expected 'hidden' float16"):
        load_trace(path, stream=True)
    shard.write_bytes(good[:-2] + b"\x01\x02")
    with pytest.raises(TraceError, match="checksum mismatch"):
        load_trace(path, stream=True)
    shard.write_bytes(b"short")
    with pytest.raises(TraceError, match="expected 'hidden' float16"):
        load_trace(path, stream=True)
