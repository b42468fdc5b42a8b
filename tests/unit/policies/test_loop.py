"""The decision loop against itself in sets and dictionaries: every code, victim, count, logged load and call of a hook.

The hooks choose by arithmetic on the registers, so that they ask for anything a policy may ask for; the admission plug, bytes,
prefetches, fills, touch orders and pools without slots are drawn too.
"""

from typing import Any

import numpy as np
import pytest

from rgpu.policies import state as S
from rgpu.policies.gate import ALWAYS, CAPPED, LOW_SCORE, PARTS, SECOND_HIT
from rgpu.policies.loop import evictable, make_state, plain

KEYS, EVENTS, ROOM = 11, 40, 12  # ROOM: rows of the log of proactive loads, too few for some cases


def lets_in(key: int, event: int) -> bool:
    return (key * 31 + event) % 5 != 0


def wishes(event: int) -> list[int]:
    return [(event * 5 + j * 3) % KEYS for j in range(event % 5)]


def pick(free: list[int], clock: int) -> int:
    return free[clock * 7 % len(free)]


class Book:
    """One pool by the words of `loop`: residents with their slots, what is pinned, and all that was counted."""

    def __init__(
        self, slots: int, sizes: list[int], room: int, plug: tuple[int, Any], changes: int, hooks: Any
    ) -> None:
        self.slots, self.sizes, self.room, self.changes, self.hooks = slots, sizes, room, changes, hooks
        self.plug, self.value = plug
        self.slot: dict[int, int] = {}
        self.free = list(range(slots))[::-1]
        self.pinned: set[int] = set()
        self.early: set[int] = set()  # loaded before they were needed, and not needed since
        self.met: set[int] = set()
        self.missed: dict[int, int] = {}
        self.event = self.clock = 0
        self.calls: list[tuple[Any, ...]] = []

    def call(self, name: str, *rest: Any) -> None:
        if name in self.hooks:
            self.calls.append((name, *rest, self.event, self.clock, tuple(sorted(self.slot.items()))))

    def place(self, key: int, demand: bool, proactive: bool, count: Any) -> tuple[int, int]:
        first = -1
        while len(self.slot) >= self.slots or sum(self.sizes[k] for k in self.slot) + self.sizes[key] > self.room:
            if set(self.slot) <= self.pinned:
                if not demand:
                    return -1, first
                self.pinned = set()
            at = pick(sorted(s for k, s in self.slot.items() if k not in self.pinned), self.clock)
            old = next(k for k, s in self.slot.items() if s == at)
            self.call("on_evict", old)
            count[S.WASTED] += old in self.early
            self.early.discard(old)
            del self.slot[old]
            self.free.append(at)
            first = old if first < 0 else first
        self.slot[key] = self.free.pop()
        self.clock += 1
        self.pinned.add(key)
        if proactive:
            self.early.add(key)
        count[S.LOADED_BYTES] += self.sizes[key]
        self.call("on_admit", key)
        return self.slot[key], first

    def kept(self, key: int, weight: float, least: float, asked: int) -> bool:
        if self.plug == LOW_SCORE:
            return weight * PARTS >= least
        if self.plug == SECOND_HIT:
            before = self.missed.get(key)
            self.missed[key] = self.event
            return before is not None and self.event - before <= self.value
        return self.plug == ALWAYS or asked < self.value

    def demand(
        self, number: int, feature: int, keys: list[int], weights: list[float], order: list[int], count: Any
    ) -> Any:
        self.event += 1
        hits = [k for k in keys if k in self.slot]
        answers = [(S.HIT if k in hits else S.BYPASS, -1) for k in keys]
        for i, key in enumerate(keys):
            if key in self.early:
                answers[i] = (S.PREFETCH_HIT, -1)
                count[S.PREFETCH_HITS] += 1
                self.early.remove(key)
        count[S.HITS] += len(hits)
        self.pinned = set(hits)
        self.call("on_event", tuple(keys), tuple(weights), feature)
        least = int(sum(weights) * self.value / len(weights)) if weights else 0
        asked = 0
        for i, key in enumerate(keys):
            if key in hits:
                continue
            count[S.COLD] += key not in self.met
            count[S.DEMAND_LOADS] += 1
            keep = self.slots > 0 and ("admit" not in self.hooks or lets_in(key, self.event))
            if keep:
                keep = self.kept(key, weights[i], least, asked)
                asked += 1
            if keep:
                answers[i] = self.place(key, True, False, count)
            else:
                count[S.LOADED_BYTES] += self.sizes[key]
        self.met |= set(keys)
        for i in order:
            self.clock += 1
            if keys[i] in self.slot:
                self.call("on_access", keys[i], keys[i] in hits)
        wanted = wishes(self.event) if "desired" in self.hooks and self.slots else []
        self.call("desired")
        if wanted:
            self.pinned = set(wanted) & set(self.slot)
        loads: list[tuple[int, int, int, int]] = []
        for key in wanted:
            if key not in self.slot and len(loads) < self.changes:
                at, first = self.place(key, False, True, count)
                if at >= 0:
                    count[S.PROACTIVE_LOADS] += 1
                    loads.append((number, key, at, first))
        return answers, loads

    def ahead(self, kind: int, keys: list[int], count: Any) -> list[tuple[int, int]]:
        if kind != S.PREFETCH_BUSY:
            self.pinned = set()
        answers = [(S.KEPT if k in self.slot else S.DROPPED, -1) for k in keys]
        self.pinned |= {k for k in keys if k in self.slot}
        for i, key in enumerate(keys):
            if answers[i][0] == S.DROPPED and self.slots > 0:
                at, first = self.place(key, False, kind != S.FILL, count)
                if at >= 0:
                    answers[i] = (at, first)
                    count[S.FILL_LOADS if kind == S.FILL else S.PROACTIVE_LOADS] += 1
        return answers


def spying(names: set[str], calls: list[Any], asked: list[Any]) -> dict[str, Any]:
    """Hooks that decide by arithmetic and note what they see."""

    def note(m: Any, name: str, *rest: Any) -> None:
        held = tuple(sorted((int(m[S.KEY_OF, s]), s) for s in range(m[S.REG, S.CAP]) if m[S.KEY_OF, s] >= 0))
        assert (
            all(m[S.SLOT_OF, k] == s for k, s in held)
            and (m[S.SLOT_OF, :KEYS] >= 0).sum() == len(held) == m[S.REG, S.USED]
        )
        assert m[S.REG, S.BYTES] == sum(m[S.SIZE, k] for k, _ in held)
        calls[m[S.REG, S.POOL]].append((name, *rest, int(m[S.REG, S.EVENT]), int(m[S.REG, S.CLOCK]), held))

    def on_event(m: Any, f: Any, keys: Any, weights: Any, feature: Any) -> None:
        note(m, "on_event", tuple(keys.tolist()), tuple(weights.tolist()), int(feature[0]))
        asked.append({int(k): int(m[S.NEXT, k]) for k in keys})

    def desired(m: Any, f: Any) -> int:
        note(m, "desired")
        wanted = wishes(int(m[S.REG, S.EVENT])) if m[S.REG, S.CAP] else []
        m[S.WANT, : len(wanted)] = wanted
        return len(wanted)

    def victim(m: Any, f: Any) -> int:
        return pick([s for s in range(m[S.REG, S.CAP]) if evictable.py_func(m, s)], int(m[S.REG, S.CLOCK]))

    every: dict[str, Any] = {
        "on_event": on_event,
        "admit": lambda m, f, key: lets_in(int(key), int(m[S.REG, S.EVENT])),
        "on_evict": lambda m, f, key: note(m, "on_evict", int(key)),
        "on_admit": lambda m, f, key: note(m, "on_admit", int(key)),
        "on_access": lambda m, f, key, hit: note(m, "on_access", int(key), bool(hit)),
        "desired": desired,
    }
    return {"victim": victim} | {n: h for n, h in every.items() if n in names}


@pytest.mark.parametrize("seed", range(80))
def test_the_loop_does_what_its_words_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pools, bytewise = int(rng.integers(1, 3)), bool(seed % 3 == 0)
    slots = [int(n) for n in rng.integers(0 if seed % 8 == 1 else 1, 7, pools)]
    sizes = [int(n) for n in rng.integers(1, 4, KEYS)] if bytewise else [1] * KEYS
    rooms = [int(rng.integers(3, 2 * n + 2)) if bytewise and n > 1 else S.NEVER for n in slots]
    plug = [(ALWAYS, 0), (LOW_SCORE, 900_000), (SECOND_HIT, 4), (CAPPED, 2)][int(rng.choice(4, p=(0.4, 0.2, 0.2, 0.2)))]
    names = [n for n in ("on_event", "admit", "on_evict", "on_admit", "on_access", "desired") if rng.random() < 0.8]
    changes = int(rng.choice([1, 2, S.NEVER]))
    m, f = make_state(pools, KEYS, slots, rows=1, frows=1, seed=3)
    m[:, S.SIZE, :KEYS] = sizes
    m[:, S.REG, S.BYTE_CAP], m[:, S.REG, S.CHANGES] = rooms, changes
    m[:, S.REG, S.GATE], m[:, S.REG, S.GATE_VALUE] = plug
    books = [Book(n, sizes, room, plug, changes, names) for n, room in zip(slots, rooms, strict=True)]

    pool = rng.integers(0, pools, EVENTS).astype(np.int32)
    kind = rng.choice([S.DEMAND, S.PREFETCH, S.PREFETCH_BUSY, S.FILL], EVENTS, p=(0.7, 0.1, 0.1, 0.1)).astype(np.int8)
    taste = rng.gamma(0.6, size=KEYS) + 0.05
    members = [rng.choice(KEYS, int(rng.integers(0, 6)), replace=False, p=taste / taste.sum()) for _ in range(EVENTS)]
    offs = np.cumsum([0, *map(len, members)]).astype(np.int64)
    keys = np.concatenate(members).astype(np.int32)
    weights = (rng.integers(0, 9, len(keys)) / 8).astype(np.float32)
    orders = [rng.permutation(len(k)) for k in members]
    touch = np.concatenate(orders).astype(np.int32) if rng.random() < 0.5 else np.zeros(0, np.int32)
    nexts = rng.integers(0, EVENTS, len(keys)) if rng.random() < 0.5 else np.zeros(0, np.int64)
    features = np.arange(EVENTS, dtype=np.float32)[:, None] if rng.random() < 0.5 else np.full((1, 1), 7, np.float32)
    codes, victims = np.full(len(keys), 99, np.int32), np.full(len(keys), 99, np.int32)
    counts, plog = np.zeros(S.COUNTS, np.int64), np.full((ROOM, 4), -7)
    calls: list[list[Any]] = [[] for _ in slots]
    asked: list[Any] = []
    plain(**spying(set(names), calls, asked))(
        m, f, pool, kind, offs, keys, weights, nexts, touch, features, codes, victims, counts, plog
    )

    count, logged, told, coming = np.zeros(S.COUNTS, np.int64), [], [], []
    known: list[dict[int, int]] = [{} for _ in slots]
    for e in range(EVENTS):
        part, book = slice(offs[e], offs[e + 1]), books[pool[e]]
        mine = [int(k) for k in keys[part]]
        if kind[e] == S.DEMAND:
            order = orders[e].tolist() if len(touch) else list(range(len(mine)))
            feature = e if len(features) > 1 else 7
            answers, loads = book.demand(e, feature, mine, weights[part].tolist(), order, count)
            logged += loads
            if len(nexts):
                known[pool[e]] |= dict(zip(mine, nexts[part].tolist(), strict=True))
            coming.append({k: known[pool[e]].get(k, S.NEVER) for k in mine})
        else:
            answers = book.ahead(int(kind[e]), mine, count)
        told += answers
    count[S.LOGGED] = min(ROOM, len(logged))
    assert list(zip(codes.tolist(), victims.tolist(), strict=True)) == told
    assert counts.tolist() == count.tolist()
    assert plog.tolist() == ([list(row) for row in logged] + [[-7] * 4] * ROOM)[:ROOM]
    for one, state, book in zip(calls, m, books, strict=True):
        assert one == book.calls
        assert np.flatnonzero(state[S.ORIGIN]).tolist() == sorted(book.early)
    assert asked == (coming if "on_event" in names else [])
    assert (m[:, S.OWN] == 0).all() and (f == 0).all()


def test_an_empty_state_has_its_slots_free_and_nothing_else() -> None:
    m, f = make_state(2, 30, [3, 40], rows=2, frows=0, width=35, seed=9)
    assert m.shape == (2, S.OWN + 2, 40) and f.shape == (2, 1, 40)
    assert make_state(1, 2, [1])[0].shape[2] == S.R7 + 1 and make_state(1, 2, [1], width=50, frows=3)[1].shape == (
        1,
        3,
        50,
    )
    for p, slots in enumerate((3, 40)):
        assert m[p, S.REG, [S.CAP, S.BYTE_CAP, S.POOL, S.SEED]].tolist() == [
            slots,
            S.NEVER,
            p,
            9,
        ]
        assert m[p, S.FREE, :slots].tolist() == list(range(slots))[::-1]
        assert (m[p, [S.SLOT_OF, S.KEY_OF]] == -1).all() and (m[p, S.NEXT] == S.NEVER).all() and not evictable(m[p], 0)
        m[p, [S.SLOT_OF, S.KEY_OF, S.NEXT]] = 0
        assert m[p, S.REG, S.MADE] == slots
        assert m[p, S.REG].sum() - S.NEVER == 2 * slots + p + 9 and (m[p, S.SIZE : S.FREE] == 0).all()
    assert (f == 0).all()


def test_each_of_two_events_gets_its_own_feature() -> None:
    m, f = make_state(1, 3, [2])
    seen: list[float] = []
    hooks = {"on_event": lambda m, f, keys, weights, feature: seen.append(feature[0]), "victim": lambda m, f: 0}
    none = np.zeros(0, np.int64)
    plain(**hooks)(
        m, f, np.zeros(2, np.int32), np.full(2, S.DEMAND), np.arange(3), np.array([0, 1]), np.ones(2), none, none,
        np.array([[5.0], [6.0]]), np.zeros(2, int), np.zeros(2, int), np.zeros(S.COUNTS, int), np.zeros((0, 4), int),
    )  # fmt: skip
    assert seen == [5, 6]
