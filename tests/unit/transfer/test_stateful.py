"""Slots under an engine whatever is submitted, cancelled and waited for: a slot that was waited for holds the last expert
submitted for it, byte for byte; copies that fail or are slow never make a wrong byte READY."""

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rgpu.errors import ConsistencyError
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.transfer.errors import TransferError
from rgpu.transfer.host import HostTransfer
from rgpu.types import ExpertKey
from tests.unit.transfer.scheduled import LAYOUT, NBYTES, ScheduledSource, holds

POOLS, SLOTS = 2, 3
addresses = st.tuples(st.integers(0, POOLS - 1), st.integers(0, SLOTS - 1))
keys = st.builds(ExpertKey, st.integers(0, 1), st.integers(0, 7))
Address = tuple[int, int]


class Engine(RuleBasedStateMachine):
    """The model: which expert was last submitted for each slot, and which slots are pinned."""

    @initialize(threads=st.integers(1, 3), chunk_bytes=st.sampled_from((64, 100, NBYTES)), permits=st.integers(0, 9))
    def open(self, threads: int, chunk_bytes: int, permits: int) -> None:
        self.source = ScheduledSource(permits)
        self.pools = [SlotPool(LAYOUT, SLOTS) for _ in range(POOLS)]
        self.engine = HostTransfer(self.source, self.pools, threads=threads, chunk_bytes=chunk_bytes)
        self.last: dict[Address, ExpertKey] = {}
        self.ahead: set[Address] = set()
        self.pinned: set[Address] = set()
        self.submitted = 0
        self.failing = False

    def wait(self, at: Address) -> bool:
        """Whether the wait came back; a wait must not depend on when copies are allowed to go on."""
        threading.Timer(0.001, self.source.allow, [None]).start()
        try:
            self.engine.wait(*at)
        except TransferError:
            assert self.failing
            return False
        finally:
            self.ahead.discard(at)
        return True

    @rule(at=addresses, key=keys, ahead=st.booleans())
    def submit(self, at: Address, key: ExpertKey, ahead: bool) -> None:
        try:
            self.engine.submit(key, *at, ahead=ahead)
        except ConsistencyError:
            assert at in self.pinned
        except TransferError:
            assert self.failing
        else:
            assert at not in self.pinned
            self.last[at] = key
            self.submitted += 1
            (self.ahead.add if ahead else self.ahead.discard)(at)

    @rule(at=addresses)
    def cancel(self, at: Address) -> None:
        if self.engine.cancel(*at):
            assert at in self.ahead or self.failing  # a wait that failed at once hurried nothing
            del self.last[at]
            assert self.pools[at[0]].state(at[1]) is CopyState.EMPTY

    @rule(permits=st.integers(0, 5))
    def schedule(self, permits: int) -> None:
        self.source.allow(permits)

    @rule(at=addresses)
    def wait_for(self, at: Address) -> None:
        if self.wait(at) and at in self.last:
            pool = self.pools[at[0]]
            assert (pool.state(at[1]), pool.key(at[1])) == (CopyState.READY, self.last[at])
            assert holds(pool, at[1], self.last[at])

    @rule(at=addresses, key=keys)
    def pin(self, at: Address, key: ExpertKey) -> None:
        pool, here = self.pools[at[0]], self.last.get(at)
        if here is None or at in self.pinned or not self.wait(at):
            return
        if key != here:
            with pytest.raises(ConsistencyError):
                pool.pin(at[1], key)
        pool.pin(at[1], here)
        self.pinned.add(at)

    # no preconditions, no draws from the state: threads decide when a fault strikes, and draws must not follow it
    @rule(which=st.integers(0, POOLS * SLOTS - 1))
    def unpin(self, which: int) -> None:
        if not self.pinned:
            return
        at = sorted(self.pinned)[which % len(self.pinned)]
        assert holds(self.pools[at[0]], at[1], self.last[at])
        self.pools[at[0]].unpin(at[1])
        self.pinned.discard(at)

    @rule(key=keys, after=st.integers(3, 12))
    def fail(self, key: ExpertKey, after: int) -> None:
        if self.submitted < after:
            return
        self.source.faults[key] = OSError("read failed")
        self.failing = True

    @invariant()
    def ready_slots_are_right(self) -> None:
        for p, pool in enumerate(self.pools):
            for slot in range(SLOTS):
                if pool.state(slot) is CopyState.READY:
                    assert pool.key(slot) == self.last[p, slot]
                    assert holds(pool, slot, self.last[p, slot])

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.source.allow(None)
        if not self.failing:
            for at in self.last:
                self.engine.wait(*at)
        self.engine.close()  # the piece of a cancelled copy may be under way until then
        counts = self.engine.counts()
        if not self.failing:
            assert (counts.queued, counts.copies + counts.cancelled) == (0, self.submitted)
            assert counts.demand_bytes + counts.ahead_bytes + counts.cancelled_bytes == self.submitted * NBYTES
        assert not self.source.overlaps


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
