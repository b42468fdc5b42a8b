"""Traces go to disk and come back whole; whatever is wrong with a file is one line."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rgpu.errors import TraceError
from rgpu.traces.storage import load_trace, save_trace
from rgpu.traces.trace import SHARDED, Trace

Make = Callable[..., Trace]


def same(a: Trace, b: Trace) -> bool:
    left, right = a.arrays(), b.arrays()
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and np.array_equal(left[n], right[n]) for n in left
    )


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, object]], None]) -> None:
    """Change the arrays and header of a trace file as a stranger's tool would."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    document = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["rgpu_trace"])
    arrays = load_file(path)
    change(arrays, document)
    save_file(arrays, path, {"rgpu_trace": json.dumps(document)})


@pytest.mark.parametrize("experts", [8, 255, 256])
def test_round_trip(tmp_path: Path, make_trace: Make, experts: int) -> None:
    trace = make_trace(experts=experts)
    path = save_trace(trace, tmp_path / "new" / "a.safetensors", shard_bytes=100)
    loaded = load_trace(path)
    assert same(trace, loaded)
    assert loaded.header.to_json() == {**trace.header.to_json(), "checksum": loaded.header.checksum}
    for name in SHARDED:
        assert len(list(path.parent.glob(f"a.{name}-*.safetensors"))) == 7  # 36 bytes a row, 2 rows a shard
    assert sorted(load_file(path)) == sorted(set(trace.arrays()) - set(SHARDED))
    for hidden, entering in ((False, None), (False, True), (True, False)):
        part = load_trace(path, hidden=hidden, pre_attention=entering)
        assert (part.hidden is not None, part.pre_attention is not None) == (hidden, bool(entering))
        assert part.shape.hidden == (6 if hidden or entering else 0)
    assert same(trace, load_trace(path, stream=True))


def test_checksum_is_the_traces_own(tmp_path: Path, make_trace: Make) -> None:
    trace = make_trace()
    whole = trace.checksum()
    trace.hidden = trace.pre_attention = None
    assert trace.checksum() == whole
    assert load_trace(save_trace(trace, tmp_path / "a.safetensors")).header.checksum == trace.checksum()


def test_overwriting_drops_stale_shards(tmp_path: Path, make_trace: Make) -> None:
    path = tmp_path / "a.safetensors"
    save_trace(make_trace(), path, shard_bytes=36)
    smaller = make_trace(lengths=(2,))
    save_trace(smaller, path, shard_bytes=36)
    assert same(load_trace(path), smaller)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_failed_write_leaves_nothing(tmp_path: Path, make_trace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TraceError, match="no space left"):
        save_trace(make_trace(), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def drop(name: str) -> Callable[[dict[str, np.ndarray], dict[str, object]], None]:
    return lambda arrays, _: arrays.__delitem__(name)


def put(name: str, index: tuple[int, ...], value: float) -> Callable[[dict[str, np.ndarray], dict[str, object]], None]:
    def change(arrays: dict[str, np.ndarray], document: dict[str, object]) -> None:
        arrays[name][index] = value
        document["checksum"] = ""

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _, d: d.update(schema_version=99), "schema_version: got 99; expected 1"),
        (lambda _, d: d.pop("model"), "header lacks 'model'"),
        (lambda _, d: d.update(num_experts="many"), "expected integers"),
        (lambda _, d: d.update(layer_ids=None), "layer_ids"),
        (lambda _, d: d.update(hidden_shards=[{}]), "unreadable header"),
        (drop("expert_ids"), "no array 'expert_ids'"),
        (drop("passes"), "no array 'passes'"),
        (put("expert_ids", (3, 1, 0), 8), "'expert_ids': got id 8 at token 3, layer 1"),
        (put("weights", (2, 0, 1), np.nan), "'weights': got NaN or infinity at token 2"),
        (put("weights", (2, 0, 1), np.inf), "'weights': got NaN"),
        (put("router_logits", (2, 0, 1), np.inf), "'router_logits': got NaN"),
        (put("passes", (0,), -1), "'passes': got -1"),
        (put("positions", (4,), -2), "'positions': got -2"),
        (put("passes", (1,), 9), "'passes': got a falling pass at token 2"),
        (put("seq_offsets", (1,), 6), "'seq_offsets': got a step of 0"),
        (put("seq_offsets", (3,), 12), "'seq_offsets': got 0 to 12; expected 0 to 13"),
        (put("phase", (0,), 3), "'phase': got 3"),
        (lambda a, _: a["token_ids"].__setitem__(0, 1000), "checksum mismatch"),
        (lambda a, _: a.update(positions=a["positions"].astype(np.int64)), "'positions': got dtype int64"),
        (lambda a, _: a.update(weights=a["weights"][1:]), "'weights': got shape"),
        (lambda a, _: a.update({n: a[n][:0] for n in a if n != "seq_offsets"}), "empty trace"),
        (lambda _, d: d["sequences"].pop(), "got 2 sequences; expected 3"),
    ],
)  # fmt: skip
def test_faults_in_one_line(
    tmp_path: Path, make_trace: Make, change: Callable[[dict[str, np.ndarray], dict[str, object]], None], said: str
) -> None:
    path = save_trace(make_trace(), tmp_path / "a.safetensors")
    rewrite(path, change)
    with pytest.raises(TraceError) as caught:
        load_trace(path, hidden=False)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_expert_twice_in_a_token(tmp_path: Path, make_trace: Make) -> None:
    for top_k in (2, 9):  # pairs, sorted neighbours
        trace = make_trace(top_k=top_k, experts=12)
        trace.expert_ids[7, 2, -1] = trace.expert_ids[7, 2, 0]
        with pytest.raises(TraceError, match="an expert twice at token 7, layer 2"):
            save_trace(trace, tmp_path / "a.safetensors")
        trace.expert_ids[7, 2] = trace.missing  # not recorded: no duplicate
        assert same(load_trace(save_trace(trace, tmp_path / "a.safetensors")), trace)


@pytest.mark.parametrize("kept", [0, 4, 40, 1000, -1])
def test_truncated(tmp_path: Path, make_trace: Make, kept: int) -> None:
    path = save_trace(make_trace(), tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TraceError, match="corrupt or truncated"):
        load_trace(path)


@pytest.mark.parametrize("name", SHARDED)
def test_shards_are_checked(tmp_path: Path, make_trace: Make, name: str) -> None:
    path = save_trace(make_trace(), tmp_path / "a.safetensors", shard_bytes=180)
    shard = tmp_path / f"a.{name}-00001.safetensors"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(TraceError, match=rf"a\.{name}-00001.*checksum mismatch"):
        load_trace(path)
    assert getattr(load_trace(path, verify=False), name) is not None
    shard.unlink()
    with pytest.raises(TraceError, match=rf"no {name} shard a\.{name}-00001"):
        load_trace(path)


def test_not_a_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        load_trace(tmp_path / "none.safetensors")
    with pytest.raises(TraceError, match="got a folder"):
        load_trace(tmp_path)
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(TraceError, match=r"suffix '\.csv'"):
        load_trace(tmp_path / "a.csv")
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(TraceError, match="without 'rgpu_trace' header"):
        load_trace(tmp_path / "other.safetensors")
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors", {"rgpu_trace": "{"})
    with pytest.raises(TraceError, match="unreadable header"):
        load_trace(tmp_path / "other.safetensors")
