"""Decision logs on disk: the same after a round trip, told in one line when wrong, and the plain form of other engines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.policies.rotary import Rotary
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.audit import audit
from rgpu.replay.engine import replay
from rgpu.replay.log_file import ARRAYS, LogFile, load_log, save_log
from rgpu.replay.pool import PoolConfig
from tests.support import routed_trace

HEADER = {"rgpu_decision_log": 1, "layers": 2, "experts": 8, "slots": 3, "expert_bytes": 10, "policy": "mine"}
EVENTS = [
    {"pass": 0, "layer": 0, "experts": [5, 2], "loads": [[5, 0, None], [2, 1, None]]},
    {"pass": 0, "layer": 1, "experts": [1, 7], "loads": [[1, 0, None]], "staged": [7], "handler": "cpu"},
    {"pass": 1, "layer": 0, "experts": [2, 6, 0], "hits": [2], "loads": [[6, 2, None], [0, 0, 5]], "times": [0.1, 0.2]},
    {"claims": {"hits": 1, "loads": 6, "bytes_loaded": 50}},
]


def logged(policy: Any, **options: Any) -> LogFile:
    trace = routed_trace(3, tokens=40, sizes=(10, 20))
    result = replay(trace, policy, PoolConfig(slots=4), calibration=trace, decisions=True, **options)
    assert result.decisions is not None
    return LogFile(result.decisions, 8, claims={"hits": result.hits, "loads": result.loads}, about={"model": "toy"})


def jsonl(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


@pytest.mark.parametrize("policy", [Lru(), StaticHot(), Rotary()], ids=lambda p: p.name)
def test_round_trip(policy: Any, tmp_path: Path) -> None:
    file = logged(policy, reset="sequence")
    file.event_s = np.arange(2.0 * len(file.log.events.layer)).reshape(-1, 2)
    file.handler = np.where(file.log.hit, 0, 1).astype(np.uint8)
    again = load_log(save_log(tmp_path / "log.safetensors", file))
    for name in ("codes", "victims", "proactive", "fills", "stretches"):
        assert np.array_equal(getattr(again.log, name), getattr(file.log, name)), name
    for name in ("pool", "layer", "pass_id", "offs", "keys", "weights", "decode"):
        assert np.array_equal(getattr(again.log.events, name), getattr(file.log.events, name)), name
    assert np.array_equal(again.log.sizes, file.log.sizes) and again.log.layout.main == file.log.layout.main
    assert (again.claims, again.about, again.log.policy) == (file.claims, file.about, policy.name)
    assert np.array_equal(again.event_s, file.event_s) and np.array_equal(again.handler, file.handler)
    assert again.load_s is None
    assert audit(again) == audit(file)
    assert [p.name for p in tmp_path.iterdir()] == ["log.safetensors"]


def test_the_plain_form(tmp_path: Path) -> None:
    file = load_log(jsonl(tmp_path / "log.jsonl", HEADER, "", *EVENTS))
    assert file.log.codes.tolist() == [0, 1, 0, -2, -1, 2, 0]
    assert file.log.victims.tolist() == [-1, -1, -1, -1, -1, -1, 5]
    assert file.handler is not None and file.handler.tolist() == [1, 1, 2, 2, 0, 1, 1]
    assert file.event_s is not None and file.event_s[2].tolist() == [0.1, 0.2]
    found = audit(file)
    assert found.problem is None and (found.hits, found.staged, found.bytes_loaded) == (1, 1, 50)
    same = load_log(save_log(tmp_path / "log.safetensors", file))
    assert audit(same) == found


def test_experts_of_other_layers_resets_and_prefetches(tmp_path: Path) -> None:
    header = HEADER | {"scope": "global", "slots": 2}
    events = [
        {"layer": 0, "experts": [5], "loads": [[5, 0, None]], "prefetches": [[[1, 3], 1, None]]},
        {"layer": 1, "experts": [3, 4], "hits": [3], "loads": [[4, 0, [0, 5]]]},
        {"layer": 0, "experts": [5], "loads": [[5, 0, None]], "reset": True},
    ]
    file = load_log(jsonl(tmp_path / "log.jsonl", header, *events))
    assert file.log.proactive.tolist() == [[0, 0, 11, 1, -1]] and file.log.stretches.tolist() == [0, 2, 3]
    assert file.log.events.pass_id.tolist() == [0, 0, 1]
    found = audit(file)
    assert found.problem is None and (found.prefetch_hits, found.proactive_loads) == (1, 1)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([], "no events"),
        ([{"layers": 2}], r"line 1: got no header"),
        ([{**HEADER, "rgpu_decision_log": 2}], "line 1: got no header"),
        ([{k: v for k, v in HEADER.items() if k != "slots"}], "line 1: got a header without 'slots'"),
        ([HEADER | {"slots": [1, 2, 3]}], "got 3 slot counts"),
        ([HEADER, "{"], "line 2: got no JSON"),
        ([HEADER, [1]], "line 2: got list"),
        ([HEADER, {"layer": 2, "experts": []}], r"line 2: got layer 2; expected a whole number from 0 to 1"),
        ([HEADER, {"layer": 0}], "line 2: got no 'experts'"),
        ([HEADER, {"layer": 0, "experts": [1], "evicted": 3}], "line 2: got the field 'evicted'"),
        ([HEADER, {"layer": 0, "experts": [8], "hits": [8]}], "line 2: got expert 8"),
        ([HEADER, {"layer": 0, "experts": [1, 2], "hits": [1]}], "expert key 2 not named once"),
        ([HEADER, {"layer": 0, "experts": [1], "hits": [1], "staged": [1]}], "expert key 1 twice"),
        ([HEADER, {"layer": 0, "experts": [1], "loads": [[1, 0]]}], r"got load \[1, 0\]"),
        ([HEADER, {"layer": 0, "experts": [1], "loads": [[1, -1, None]]}], "got slot -1"),
        ([HEADER, {"layer": 0, "experts": [1], "loads": [[1, 0, [1, 2]]]}], "another pool"),
        ([HEADER, {"layer": 0, "experts": [1], "hits": [1], "handler": "gpu"}], "got handler 'gpu'"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_plain_form_is_one_line(lines: list[Any], match: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", *lines)
    with pytest.raises(InputError, match=match) as error:
        load_log(path)
    assert "\n" not in str(error.value)


def broken(path: Path, **changes: Any) -> Path:
    """The file with arrays replaced (None: left out), header kept."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as source:
        metadata = source.metadata()
    arrays = {n: a for n, a in (load_file(path) | changes).items() if a is not None}
    save_file(arrays, path, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"codes": None}, "no array 'codes'"),
        ({"codes": np.zeros(3, np.int32)}, "3 values of 'codes'"),
        ({"codes": np.zeros(3, np.int64)}, "got 'codes' int64"),
        ({"stretches": np.array([0, 3], np.int64)}, "'stretches' that do not rise"),
        ({"offs": np.zeros(81, np.int64)}, "'offs' that do not rise"),
        ({"layer": np.full(80, 7, np.int16)}, "got layer 7"),
        ({"fills": np.zeros((2, 4), np.int64)}, "'fills' of shape"),
    ],
)
def test_a_broken_file_is_one_line(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = broken(save_log(tmp_path / "log.safetensors", logged(Lru())), **changes)
    with pytest.raises(InputError, match=match):
        load_log(path)


def test_wrong_values_are_told(tmp_path: Path) -> None:
    path = save_log(tmp_path / "log.safetensors", logged(Lru()))
    arrays = load_file(path)
    for name, value, match in (
        ("keys", 99, "expert key 99"),
        ("codes", -3, "got code -3"),
        ("victims", 99, "victim key"),
    ):
        changed = arrays[name].copy()
        changed[0] = value
        with pytest.raises(InputError, match=match):
            load_log(broken(path, **{name: changed}))
        broken(path, **{name: arrays[name]})
    twice = arrays["keys"].copy()
    first = int(np.flatnonzero(np.diff(arrays["offs"]) > 1)[0])
    twice[arrays["offs"][first] + 1] = twice[arrays["offs"][first]]
    with pytest.raises(InputError, match="twice in one event"):
        load_log(broken(path, keys=twice))


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_log(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read log"):
        load_log(tmp_path / "bad.safetensors")
    save_file({"x": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="header"):
        load_log(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="suffix"):
        save_log(tmp_path / "log.npz", logged(Lru()))
    save_file({"x": np.zeros(1)}, tmp_path / "new.safetensors", {"rgpu_decision_log": '{"schema_version": 9}'})
    with pytest.raises(InputError, match="schema_version 9; expected 1"):
        load_log(tmp_path / "new.safetensors")


def test_the_documented_arrays_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[3] / "docs" / "decision_log.md").read_text()
    assert [name for name in ARRAYS if f"`{name}`" not in text] == []
