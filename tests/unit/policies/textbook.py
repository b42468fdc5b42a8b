"""The queue policies once more, in lists, sets and dictionaries, under an event loop written from the definitions.

Nothing here is shared with rgpu's loop or its linked lists. Every order is a plain list, oldest first.
"""

from collections.abc import Sequence

DEMAND, PREFETCH, BUSY, FILL = 0, 1, 2, 3


class Textbook:
    """Pool of one policy; a subclass says what it learns (`seen`, `arrived`, `used`, `left`) and whom it gives up."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.resident: dict[int, int] = {}  # the slot of each
        self.open = list(range(slots))[::-1]
        self.pinned: set[int] = set()
        self.clock = self.event = 0

    def free(self, keys: Sequence[int]) -> list[int]:
        return [k for k in keys if k not in self.pinned]

    def seen(self, key: int) -> None: ...
    def arrived(self, key: int) -> None: ...
    def used(self, key: int, hit: bool) -> None: ...
    def left(self, key: int) -> None: ...
    def victim(self) -> int:
        raise NotImplementedError

    def load(self, key: int, demand: bool) -> int:
        """Victim's key, -1 where a slot was free, -2 where all are pinned and the load is dropped."""
        gone = -1
        if len(self.resident) == self.slots:
            if self.pinned >= self.resident.keys():
                if not demand:
                    return -2
                self.pinned = set()  # the wave has been served
            gone = self.victim()
            assert gone in self.resident and gone not in self.pinned
            self.left(gone)
            self.open.append(self.resident.pop(gone))
        self.resident[key] = self.open.pop()
        self.pinned.add(key)
        self.clock += 1
        self.arrived(key)
        return gone

    def run(self, kind: int, keys: Sequence[int]) -> list[tuple[bool, int]]:
        """(resident before, victim) of each key; only demand events are uses."""
        present = [k in self.resident for k in keys]
        hits = {k for k, was in zip(keys, present, strict=True) if was}
        if kind == BUSY:
            self.pinned |= hits
        else:
            self.pinned = set(hits)
        self.event += kind == DEMAND
        out = []
        for key, was in zip(keys, present, strict=True):
            if was:
                out.append((True, -1))
                continue
            if kind == DEMAND:
                self.seen(key)
            out.append((False, self.load(key, kind == DEMAND)))
        if kind == DEMAND:
            for key in keys:
                self.clock += 1
                if key in self.resident:
                    self.used(key, key in hits)
        return out


class Lru(Textbook):
    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.order: list[int] = []

    def arrived(self, key: int) -> None:
        self.order.append(key)

    def used(self, key: int, hit: bool) -> None:
        self.order.remove(key)
        self.order.append(key)

    def left(self, key: int) -> None:
        self.order.remove(key)

    def victim(self) -> int:
        return self.free(self.order)[0]


class Fifo(Lru):
    def used(self, key: int, hit: bool) -> None: ...


class Clock(Textbook):
    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.frames: list[int] = []
        self.marked: set[int] = set()
        self.hand = 0

    def used(self, key: int, hit: bool) -> None:
        if hit:
            self.marked.add(key)

    def arrived(self, key: int) -> None:
        if -1 in self.frames:
            self.frames[self.frames.index(-1)] = key
        else:
            self.frames.append(key)

    def left(self, key: int) -> None:
        self.frames[self.frames.index(key)] = -1

    def victim(self) -> int:
        while True:
            key = self.frames[self.hand]
            self.hand = (self.hand + 1) % self.slots
            if key not in self.pinned:
                if key not in self.marked:
                    return key
                self.marked.remove(key)


class Sieve(Textbook):
    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.order: list[int] = []
        self.visited: set[int] = set()
        self.at = 0  # place of the hand in the order

    def used(self, key: int, hit: bool) -> None:
        if hit:
            self.visited.add(key)

    def arrived(self, key: int) -> None:
        self.order.append(key)

    def left(self, key: int) -> None:
        self.order.remove(key)  # the hand is now at the next newer

    def victim(self) -> int:
        while True:
            # A hand that has gone past the newest starts over, although others have queued up where it stood.
            if self.at < 0 or self.at >= len(self.order):
                self.at = 0
            key = self.order[self.at]
            if key not in self.pinned:
                if key not in self.visited:
                    if self.at == len(self.order) - 1:
                        self.at = -1
                    return key
                self.visited.remove(key)
            self.at += 1


class Slru(Textbook):
    def __init__(self, slots: int, segments: int = 2, spill: bool = False) -> None:
        super().__init__(slots)
        self.parts: list[list[int]] = [[] for _ in range(segments)]
        self.share, self.spill = slots // segments, spill

    def part(self, key: int) -> int:
        return next(i for i, part in enumerate(self.parts) if key in part)

    def arrived(self, key: int) -> None:
        room = [i for i, part in enumerate(self.parts) if len(part) < self.share]
        self.parts[room[0] if self.spill and room else 0].append(key)

    def used(self, key: int, hit: bool) -> None:
        at = self.part(key)
        self.parts[at].remove(key)
        at = min(at + hit, len(self.parts) - 1)
        self.parts[at].append(key)
        while at > 0 and len(self.parts[at]) > self.share:
            self.parts[at - 1].append(self.parts[at].pop(0))
            at -= 1

    def left(self, key: int) -> None:
        self.parts[self.part(key)].remove(key)

    def victim(self) -> int:
        return next(free[0] for part in self.parts if (free := self.free(part)))


class LruK(Textbook):
    """Histories as in figure 2.1 of the paper."""

    def __init__(self, slots: int, k: int = 2, correlated: int = 0, retained: int | None = None) -> None:
        super().__init__(slots)
        self.k, self.correlated, self.retained = k, correlated, retained
        self.times: dict[int, list[int]] = {}  # HIST, most recent first
        self.last: dict[int, int] = {}
        self.when: dict[int, int] = {}  # event of the last use
        self.recent: dict[int, int] = {}  # clock of the last use or load

    def spared(self, key: int) -> bool:
        return bool(self.times.get(key)) and self.event - self.when[key] <= self.correlated

    def arrived(self, key: int) -> None:
        if self.retained is not None and self.event - self.when.get(key, 0) > self.retained:
            self.times[key] = []
        self.recent[key] = self.clock

    def used(self, key: int, hit: bool) -> None:
        times = self.times.setdefault(key, [])
        if not (hit and self.spared(key)):
            spell = self.last[key] - times[0] if hit and times else 0
            self.times[key] = [self.clock, *(t + spell for t in times)][: self.k]
        self.last[key] = self.recent[key] = self.clock
        self.when[key] = self.event

    def victim(self) -> int:
        free = self.free(sorted(self.resident, key=lambda k: self.resident[k]))
        if self.correlated:
            free = [k for k in free if not self.spared(k)] or free
        few = [k for k in free if len(self.times.get(k, [])) < self.k]
        if few:
            return min(few, key=lambda k: self.recent[k])
        return min(free, key=lambda k: self.times[k][self.k - 1])


class TwoQ(Textbook):
    def __init__(self, slots: int, a1in: float = 0.25, a1out: float = 0.5) -> None:
        super().__init__(slots)
        self.a1in: list[int] = []
        self.a1out: list[int] = []
        self.am: list[int] = []
        self.kin, self.kout = max(1, int(a1in * slots)), max(1, int(a1out * slots))

    def arrived(self, key: int) -> None:
        if key in self.a1out:
            self.a1out.remove(key)
            self.am.append(key)
        else:
            self.a1in.append(key)
        self.a1out = self.a1out[-self.kout :]

    def used(self, key: int, hit: bool) -> None:
        if key in self.am:
            self.am.remove(key)
            self.am.append(key)

    def left(self, key: int) -> None:
        if key in self.a1in:
            self.a1in.remove(key)
            self.a1out.append(key)
        else:
            self.am.remove(key)

    def victim(self) -> int:
        ins, ams = self.free(self.a1in), self.free(self.am)
        return (ins or ams)[0] if len(self.a1in) > self.kin else (ams or ins)[0]


class Arc(Textbook):
    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self.p = 0.0
        self.asked = -1

    def seen(self, key: int) -> None:
        self.asked = key
        if key in self.b1:
            self.p = min(float(self.slots), self.p + max(1.0, len(self.b2) / len(self.b1)))
        elif key in self.b2:
            self.p = max(0.0, self.p - max(1.0, len(self.b1) / len(self.b2)))

    def arrived(self, key: int) -> None:
        self.asked = -1
        if key in self.b1 + self.b2:
            (self.b1 if key in self.b1 else self.b2).remove(key)
            self.t2.append(key)
        else:
            self.t1.append(key)
            if len(self.t1) + len(self.b1) > self.slots:
                self.b1.pop(0)
            if len(self.t1) + len(self.b1) + len(self.t2) + len(self.b2) > 2 * self.slots:
                self.b2.pop(0)

    def used(self, key: int, hit: bool) -> None:
        mine = self.t1 if key in self.t1 else self.t2
        mine.remove(key)
        (self.t2 if hit else mine).append(key)

    def left(self, key: int) -> None:
        mine, ghosts = (self.t1, self.b1) if key in self.t1 else (self.t2, self.b2)
        mine.remove(key)
        ghosts.append(key)

    def victim(self) -> int:
        ones, twos = self.free(self.t1), self.free(self.t2)
        first = len(self.t1) > self.p or (len(self.t1) == self.p and self.asked in self.b2)
        return ((ones or twos) if first else (twos or ones))[0]


class Lirs(Textbook):
    def __init__(self, slots: int, hir: float = 0.01) -> None:
        super().__init__(slots)
        self.stack: list[int] = []
        self.queue: list[int] = []
        self.lir: set[int] = set()
        self.most = slots - max(1, int(hir * slots))

    def top(self, key: int) -> None:
        if key in self.stack:
            self.stack.remove(key)
        self.stack.append(key)

    def prune(self) -> None:
        while self.stack and self.stack[0] not in self.lir:
            self.stack.pop(0)

    def make_lir(self, key: int) -> None:
        self.top(key)
        self.lir.add(key)
        while len(self.lir) > self.most:
            self.prune()
            self.lir.remove(self.stack[0])
            self.queue.append(self.stack.pop(0))
        self.prune()

    def arrived(self, key: int) -> None:
        if key in self.stack or len(self.resident) <= self.most:
            self.make_lir(key)
        else:
            self.top(key)
            self.queue.append(key)

    def used(self, key: int, hit: bool) -> None:
        if key in self.lir:
            self.top(key)
            self.prune()
        else:
            self.queue.remove(key)
            if hit and key in self.stack:
                self.make_lir(key)
            else:
                self.top(key)
                self.queue.append(key)

    def left(self, key: int) -> None:
        if key in self.lir:
            self.lir.remove(key)
            self.prune()
        else:
            self.queue.remove(key)

    def victim(self) -> int:
        return (self.free(self.queue) or self.free([k for k in self.stack if k in self.lir]))[0]


class S3Fifo(Textbook):
    def __init__(
        self, slots: int, small: float = 0.1, ghost: float = 0.9, promote: int = 2, spill: bool = False
    ) -> None:
        super().__init__(slots)
        self.small: list[int] = []
        self.main: list[int] = []
        self.ghost: list[int] = []
        self.uses: dict[int, int] = {}
        self.room, self.ghosts = max(1, int(small * slots)), max(1, int(ghost * slots))
        self.promote, self.spill = promote, spill

    def arrived(self, key: int) -> None:
        self.uses[key] = 0
        if key in self.ghost:
            self.ghost.remove(key)
            self.main.append(key)
        elif self.spill and len(self.small) >= self.room:
            self.main.append(key)
        else:
            self.small.append(key)
        self.ghost = self.ghost[-self.ghosts :]

    def used(self, key: int, hit: bool) -> None:
        self.uses[key] = min(3, self.uses[key] + hit)

    def left(self, key: int) -> None:
        if key in self.small:
            self.small.remove(key)
            self.ghost.append(key)
        else:
            self.main.remove(key)

    def evict_small(self) -> int:
        for key in self.free(self.small):
            if self.uses[key] < self.promote:
                return key
            self.uses[key] = 0
            self.small.remove(key)
            self.main.append(key)
        return -1

    def evict_main(self) -> int:
        while free := self.free(self.main):
            if self.uses[free[0]] == 0:
                return free[0]
            self.uses[free[0]] -= 1
            self.main.remove(free[0])
            self.main.append(free[0])
        return -1

    def victim(self) -> int:
        self.spill = False
        turns = [self.evict_main, self.evict_small, self.evict_main]
        if len(self.small) >= self.room:
            turns.insert(0, self.evict_small)
        for turn in turns:
            if (key := turn()) >= 0:
                return key
        raise AssertionError("all pinned")
