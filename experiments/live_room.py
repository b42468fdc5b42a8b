"""A live run whose slots change as it goes on: given back as the context takes their bytes, or because a cap is lowered."""

import sys
from typing import Any

from omegaconf import ListConfig

from rgpu.errors import InputError
from rgpu.experiments.inputs import parse_bytes
from rgpu.experiments.live_peaks import Peaks
from rgpu.memory.exhausted import is_shortage
from rgpu.planning.memory_plan import MemoryPlan, SlotRoom, readable
from rgpu.runtime.block_cache import BLOCK, block_cache, grow, room
from rgpu.runtime.session import OffloadSession


def caps_of(given: Any, new: int) -> list[tuple[int, int]]:
    """(new tokens, bytes) of `memory.then`, in order."""
    if given is None:
        return []
    caps = []
    for row in given if isinstance(given, ListConfig | list) else [given]:
        if not isinstance(row, ListConfig | list) or len(row) != 2 or type(row[0]) is not int or not 0 < row[0] < new:
            raise InputError(
                f"memory.then: got {given}; expected pairs of new tokens, from 1 to {new - 1}, and a cap; set "
                "memory.then=[[64,520MiB]], say"
            )
        caps.append((row[0], parse_bytes(row[1], "memory.then")))
    if [at for at, _ in caps] != sorted({at for at, _ in caps}):
        raise InputError(f"memory.then: got {given}; expected rising numbers of tokens; put them in order")
    return caps


def cache_of(session: OffloadSession, later: "Later | None") -> Any:
    """The cache for `generate`: of fixed size, or in blocks, where steps are graphs; else transformers' own."""
    if later is not None and later.cache is not None:
        return later.cache
    return None if session.graphs is None else "static"


class Later:
    """Sets a session's pools between passes to what `room` has for them under the cap of the moment.

    `plan`: at full context. `grow`: room is looked at for the context that there is, else for the plan's. A cap that is too
    small for that is one line on stderr, and the run goes on with the one before.
    """

    def __init__(self, room: SlotRoom, plan: MemoryPlan, prompt: int, grow: bool, caps: list[tuple[int, int]]) -> None:
        self.room, self.plan, self.prompt, self.grow, self.caps = room, plan, prompt, grow, caps
        self._cap = plan.ram if plan.vram is None else plan.vram
        self._caps: list[dict[str, Any]] = []  # those that were, each with the peak of its time
        self._since = 0  # new tokens when the cap of now came
        self._first = plan
        self._due = list(caps)
        self.cache: Any = None
        self.short = 0  # times that more slots had to go than planned
        self.refused: list[dict[str, int]] = []

    def begins_with(self, plan: MemoryPlan) -> None:
        """The plan that the run's first slots are from."""
        self._first = plan

    def block_of(self, context: int) -> int:
        """Tokens that a cache in blocks has room for when there are `context`."""
        return min(self.plan.context, -(-context // BLOCK) * BLOCK)

    def watch(self, session: OffloadSession, peaks: Peaks, blocks: bool = False) -> None:
        """From now on. `blocks`: where contexts grow, `cache` is one for `generate` that grows by blocks, behind the slots."""
        self._session, self._start, self._peaks = session, sum(session.sizes.rows()), peaks
        if self.grow and blocks:
            self.cache = block_cache(session.model, self._first.context, self.plan.context)
            session.after_passes(
                lambda held: self._between(held, 1)
            )  # masks of the next pass are made before it begins
        session.between_passes(self._between)

    def _between(self, past: int, new: int) -> None:
        context = past + new if self.grow else self.plan.context
        if self.cache is not None:
            context = max(room(self.cache), self.block_of(context))
        caps = [self._cap]
        while self._due and past + new - self.prompt >= self._due[0][0]:
            at, cap = self._due.pop(0)
            least = self.room.smallest(self.plan.context)  # to the end of the run
            if cap < least:
                self.refused.append({"tokens": at, "cap_bytes": cap, "smallest_bytes": least})
                sys.stderr.write(
                    f"rgpu generate: memory.then: got {cap} bytes from {at} tokens on; expected at least {least} "
                    f"({readable(least)}); the run goes on with {caps[-1]}\n"
                )
                continue
            caps.append(cap)
        new_cap, raised = caps[-1], caps[-1] > self._cap
        if raised:  # more is taken under the new cap, less is given back under the old one
            self._ends(new_cap, past + new - self.prompt)
        sizes = self._session.sizes
        now, total = sum(sizes.rows()), self.room.rows(context, new_cap)
        if not self.caps or 0 <= total - self._start < self.plan.pools:  # no change for what a division leaves over
            total = min(total, self._start)
        if 0 < total < now or ((raised or not past) and total > now):
            sizes.resize(sizes.within(total))
        if new_cap < self._cap:
            self._ends(new_cap, past + new - self.prompt)
        if self.cache is not None:  # slots have gone, so their bytes are free
            self._grow(context)

    def _ends(self, cap: int, tokens: int) -> None:
        """The cap of now had its time; `cap` holds from `tokens` new tokens on."""
        self._caps.append(self._part())
        self._cap, self._since = cap, tokens

    def _part(self) -> dict[str, Any]:
        where = "ram" if self.plan.vram is None else "vram"
        peak = self._peaks.end_part(where == "vram")
        return {"tokens": self._since, "cap_bytes": self._cap, "peak_bytes": peak, "where": where}

    def conclude(self) -> None:
        """The run is over: the last cap had its time."""
        self._caps.append(self._part())

    def _grow(self, context: int) -> None:
        """Where the plan was wrong and there is no memory for the cache, more slots go until there is."""
        sizes = self._session.sizes
        while True:
            try:
                return grow(self.cache, context)
            except (MemoryError, RuntimeError) as error:
                rows = sizes.rows()
                if not is_shortage(error) or sum(rows) <= sizes.least * len(rows):
                    raise
                sizes.resize(sizes.within(sum(rows) - len(rows)))
                self.short += 1
                sys.stderr.write(
                    f"rgpu generate: got no memory for a cache of {context} tokens; {len(rows)} slots more are given back\n"
                )

    def section(self) -> dict[str, Any]:
        """Slots of all pools at the start, planned at full context, and now; every change: before which pass, slots then;
        every cap: from which new token on, and the peak of its time."""
        sizes = self._session.sizes
        staging = self._session.controller.staging
        by_pool = {p: self._start // self._first.pools - staging for p in range(self._first.pools)}
        changes: dict[int, int] = {}
        for number, pool, slots in sizes.history:
            by_pool[pool] = slots
            changes[number] = sum(by_pool.values()) + staging * len(by_pool)
        return {
            "slots_at_start": self._start,
            "slots_at_full_context": self.plan.pools * self.plan.slots,
            "slots_at_end": sum(sizes.rows()),
            "context_at_start": self._first.context,
            "full_context": self.plan.context,
            "cap_bytes_at_end": self._cap,
            "caps": self._caps,
            "refused": self.refused,
            "short_of_memory": self.short,
            "changes": [{"pass": number, "slots": slots} for number, slots in changes.items()],
        }
