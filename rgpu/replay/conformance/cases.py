"""The cases: three traces that tell wrong semantics apart, and hundreds drawn at random with a fixed seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rgpu.errors import InputError
from rgpu.replay.conformance.reference import POLICIES, Event, fewest_loads, simulate

VERSION = 1
DRAWN = 400
SEED = 20260101


@dataclass(frozen=True, slots=True)
class Case:
    """`events`: (layer, experts in rank order), one a line of passes; `scope` layer (a pool a layer) or global (one pool)."""

    name: str
    layers: int
    experts: int
    slots: int
    scope: str
    events: tuple[tuple[int, tuple[int, ...]], ...]

    def keyed(self) -> list[Event]:
        """Events as (pool, keys): layer by layer, or one pool with key = layer * experts + expert."""
        if self.scope == "layer":
            return [(layer, members) for layer, members in self.events]
        return [(0, tuple(layer * self.experts + e for e in members)) for layer, members in self.events]

    def name_of(self, key: int | None) -> Any:
        """An expert as the JSON names it: its number, or [layer, expert] in a pool of several layers."""
        return key if key is None or self.scope == "layer" else [key // self.experts, key % self.experts]


def named() -> Iterator[Case]:
    """Every layer requests {0,1},{0,2},{0,1},{0,3},{0,1} with 2 slots: 12 hits and 18 misses over 3 layers (Zhang, arXiv
    2608.07911); {2},{1},{0,2}: 1 hit where events are atomic, none one at a time; and the trace on which touching hits
    before misses breaks inclusion: {x},{a,b,c},{y,z,x},{p},{q},{x} must hit last at 3 slots and at 4."""
    pairs = [(0, 1), (0, 2), (0, 1), (0, 3), (0, 1)]
    yield Case("three_layers", 3, 4, 2, "layer", tuple((layer, p) for p in pairs for layer in range(3)))
    yield Case("atomic_events", 1, 3, 2, "layer", tuple((0, p) for p in [(2,), (1,), (0, 2)]))
    inclusion = [(0,), (1, 2, 3), (4, 5, 0), (6,), (7,), (0,)]
    for slots in (3, 4):
        yield Case(f"inclusion_{slots}_slots", 1, 8, slots, "layer", tuple((0, p) for p in inclusion))


def drawn(count: int = DRAWN, seed: int = SEED) -> Iterator[Case]:
    """Random traces small enough for exhaustive search; a third with unions larger than the pool, a third in one pool."""
    rng = random.Random(seed)
    for number in range(count):
        scope, layers = ("global", 2) if number % 3 == 2 else ("layer", rng.choice((1, 2)))
        experts = rng.randint(3, 3 if scope == "global" else 6)
        widest = rng.randint(1, min(4, experts))
        events = []
        for step in range(rng.randint(5, 9)):
            for layer in range(layers):
                if step and rng.random() < 0.1:
                    continue  # a pass that skips a layer
                events.append((layer, tuple(rng.sample(range(experts), rng.randint(1, widest)))))
        slots = rng.randint(1, widest) if number % 3 == 1 else rng.randint(widest, widest + 2)
        yield Case(f"drawn_{number:03d}", layers, experts, slots, scope, tuple(events))


def cases() -> list[Case]:
    """All of them, the same on every machine."""
    return [*named(), *drawn()]


def expected(case: Case) -> dict[str, Any]:
    """What any engine must give, as JSON data."""
    events, found = case.keyed(), {}
    for policy in POLICIES:
        answer = simulate(events, case.slots, policy)
        decisions = [[[case.name_of(k), what, case.name_of(v)] for k, what, v in event] for event in answer.decisions]
        found[policy] = {"hits": answer.hits, "loads": answer.loads, "decisions": decisions}
    return {
        **found,
        "fewest_loads_forced": fewest_loads(events, case.slots, forced=True),
        "fewest_loads": fewest_loads(events, case.slots, forced=False),
    }


def document() -> dict[str, Any]:
    """The kit as JSON data: version, what the fields mean, and every case with its expected results."""
    listed = [
        {
            "name": case.name, "layers": case.layers, "experts": case.experts, "slots": case.slots, "scope": case.scope,
            "events": [[layer, list(members)] for layer, members in case.events], "expected": expected(case),
        }
        for case in cases()
    ]  # fmt: skip
    return {
        "rgpu_conformance": VERSION,
        "about": "events: [layer, experts in rank order]; slots in each pool; decisions: one list an event of "
        "[expert, hit or load, victim or null]; fewest_loads_forced: forced Belady (null where an event is larger than "
        "the pool); fewest_loads: bypass-Belady. Semantics: docs/concepts.md, docs/decision_log.md.",
        "cases": listed,
    }


def compare(results: dict[str, Any]) -> tuple[int, list[str]]:
    """(answers checked, mismatches in one line each) of an engine's results: {case: {policy: {hits, loads, decisions}}}.

    `decisions` may be left out; policies may be some of lru, fifo, lfu, and belady or belady_bypass with loads alone.
    """
    known = {case.name: case for case in cases()}
    checked, wrong = 0, []
    for name, answers in results.items():
        if name not in known or not isinstance(answers, dict):
            raise InputError(f"results: got case {name!r}; expected names and answers of the exported kit")
        truth = expected(known[name])
        for policy, answer in answers.items():
            want = _wanted(truth, policy)
            if want is None or not isinstance(answer, dict):
                raise InputError(f"results: got policy {policy!r}; expected {', '.join((*POLICIES, *_OPTIMA))}")
            for field in ("hits", "loads", "decisions"):
                if field in answer and field in want and want[field] is not None:
                    checked += 1
                    if answer[field] != want[field]:
                        wrong.append(_mismatch(name, policy, field, answer[field], want[field]))
    return checked, wrong


_OPTIMA = {"belady": "fewest_loads_forced", "belady_bypass": "fewest_loads"}


def _wanted(truth: dict[str, Any], policy: str) -> dict[str, Any] | None:
    if policy in _OPTIMA:
        return {"loads": truth[_OPTIMA[policy]]}
    return truth[policy] if policy in POLICIES else None


def _mismatch(name: str, policy: str, field: str, got: Any, want: Sequence[Any] | int) -> str:
    if field == "decisions" and isinstance(got, list) and isinstance(want, list):
        for e, (a, b) in enumerate(zip(got, want, strict=False)):
            if a != b:
                return f"{name} {policy}: event {e}: got {a}, expected {b}"
        return f"{name} {policy}: got {len(got)} events, expected {len(want)}"
    return f"{name} {policy}: got {field} {got}, expected {want}"
