"""The kit is the same everywhere, says what the definitions fix, and rgpu's own loop passes every case of it."""

from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.fifo import Fifo
from rgpu.policies.lfu import Lfu
from rgpu.policies.loop import DEMAND
from rgpu.policies.lru import Lru
from rgpu.replay.audit import decided_by
from rgpu.replay.conformance.cases import Case, cases, compare, document, expected
from rgpu.replay.events import Events
from rgpu.replay.log import DecisionLog
from rgpu.replay.log_file import LogFile, layout_of

POLICIES: dict[str, Any] = {p.name: p for p in (Lru(), Fifo(), Lfu(), Belady(), BeladyBypass())}


def as_file(case: Case) -> LogFile:
    """The case's events with nothing decided."""
    header = {"layers": case.layers, "experts": case.experts, "slots": case.slots, "scope": case.scope}
    layout, experts = layout_of(header, case.name)
    layer = np.array([e[0] for e in case.events], np.int16)
    keyed = case.keyed()
    sizes, keys = [len(members) for _, members in keyed], [k for _, members in keyed for k in members]
    offs = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n, v = len(keys), len(layer)
    events = Events(
        layout.pool_of[layer], np.full(v, DEMAND, np.int8), layer, np.arange(v, dtype=np.int32), np.zeros(v, bool), offs,
        np.array(keys, np.int32), np.zeros(n, np.float32), np.zeros(0, np.int32), n,
    )  # fmt: skip
    none, codes = np.zeros((0, 5), np.int64), np.zeros(n, np.int32)
    return LogFile(DecisionLog("", events, layout, codes, codes - 1, none, none, np.array([0, v])), experts)


def answers(case: Case, policy: str) -> dict[str, Any]:
    file = as_file(case)
    log = decided_by(file, POLICIES[policy])
    decisions = []
    for e in range(len(case.events)):
        at = slice(log.events.offs[e], log.events.offs[e + 1])
        rows = zip(log.events.keys[at].tolist(), log.hit[at].tolist(), log.victims[at].tolist(), strict=True)
        decisions.append(
            [[case.name_of(k), "hit" if h else "load", None if v < 0 else case.name_of(v)] for k, h, v in rows]
        )
    return {"hits": int(log.hit.sum()), "loads": int((~log.hit).sum()), "decisions": decisions}


def test_the_loop_conforms() -> None:
    kit = cases()
    assert len(kit) > 400 and len({c.name for c in kit}) == len(kit)
    results = {c.name: {p: answers(c, p) for p in POLICIES} for c in kit}
    checked, wrong = compare(results)
    assert wrong == []
    assert checked > 3_500


def test_what_the_definitions_fix() -> None:
    found = {c.name: expected(c) for c in cases()[:4]}
    assert (found["three_layers"]["lru"]["hits"], found["three_layers"]["lru"]["loads"]) == (12, 18)
    assert found["atomic_events"]["lru"]["hits"] == 1
    for slots in (3, 4):
        assert found[f"inclusion_{slots}_slots"]["lru"]["decisions"][-1] == [[0, "hit", None]]


def test_the_kit_has_variety_and_is_repeatable() -> None:
    kit = cases()
    assert kit == cases() and document() == document()
    assert {c.scope for c in kit} == {"layer", "global"}
    assert sum(max(len(m) for _, m in c.events) > c.slots for c in kit) > 50
    told = sum(expected(c)["fewest_loads_forced"] is None for c in kit)
    assert 50 < told < 250


def test_mismatches_are_named_and_unknown_names_told() -> None:
    case = cases()[0]
    right = answers(case, "lru")
    wrong = {**right, "hits": 11, "decisions": [*right["decisions"][:-1], [[0, "load", 1]]]}
    checked, lines = compare({case.name: {"lru": wrong, "belady": {"loads": 1}}})
    assert checked == 4 and len(lines) == 3
    assert lines[0] == "three_layers lru: got hits 11, expected 12"
    assert lines[1].startswith("three_layers lru: event 14: got [[0, 'load', 1]], expected ")
    with pytest.raises(InputError, match="case 'x'"):
        compare({"x": {}})
    with pytest.raises(InputError, match="policy 'mru'"):
        compare({case.name: {"mru": {}}})
