"""`PoolSizes`: pools that become smaller or larger between the passes of a run, without a bit of its output changing.

What has to go is decided by the controller (`Controller.resize`), so the policy chooses it and a replay repeats it; here the
memory follows. On a CPU a pool keeps its addresses and its last pages go back to the system. On a GPU all pools get one new
allocation, after the old one is gone, and their experts are copied from the store once more: the peak is never above the
larger of both. Legend: P pools, S slots.
"""

from collections.abc import Callable, Sequence

import torch

from rgpu.errors import InputError
from rgpu.memory.slot_pool import CopyState, renew_pools
from rgpu.replay.resizing import Resized, check_resizable
from rgpu.runtime.executor import PoolExecutor
from rgpu.types import ExpertKey


class PoolSizes:
    """The sizes of a session's pools. Rows of a pool are its slots, staging included.

    `number()` is the next pass, or None while one runs. `moved()` is called when the pools' addresses have changed.
    `history`: [pass, pool, slots that keep experts] of every change, as `rgpu.replay.resizing.Resizes` takes them.
    `anew`: never keep addresses (as on a GPU).
    """

    def __init__(
        self, executor: PoolExecutor, device: torch.device, number: Callable[[], int | None], moved: Callable[[], None],
        anew: bool = False,
    ) -> None:  # fmt: skip
        self.executor, self.device, self.number, self.moved = executor, device, number, moved
        self.anew = anew or device.type != "cpu"
        self.history: list[list[int]] = []
        self._start = self.rows()

    @property
    def least(self) -> int:
        """Rows that a pool cannot do without."""
        return self.executor.controller.staging + 1

    def rows(self) -> list[int]:
        """[P] now."""
        return [pool.rows for pool in self.executor.pools]

    def most(self) -> list[int]:
        """[P] with every expert in a slot."""
        controller = self.executor.controller
        layers = [int((controller.layout.pool_of == p).sum()) for p in range(controller.pools)]
        return [count * controller.shape.experts + controller.staging for count in layers]

    def within(self, total: int) -> list[int]:
        """[P] rows, `total` in all (at least `least` each), shared out as they were at the start."""
        whole, most = sum(self._start), self.most()
        rows = [max(self.least, min(top, share * total // whole)) for share, top in zip(self._start, most, strict=True)]
        while sum(rows) > max(total, self.least * len(rows)):
            rows[rows.index(max(rows))] -= 1
        while sum(rows) < min(total, sum(most)):
            for p, top in enumerate(most):
                if rows[p] < top and sum(rows) < total:
                    rows[p] += 1
        return rows

    def set_cap(self, nbytes: int, beside: int = 0) -> list[Resized]:
        """Gives all pools together what a cap of `nbytes` leaves after `beside` bytes of everything else. `InputError` with the
        smallest cap that works; nothing has changed then."""
        stride, pools = self.executor.pools[0].layout.stride, len(self.executor.pools)
        smallest = beside + self.least * pools * stride
        if nbytes < smallest:
            raise InputError(
                f"memory cap: got {nbytes} bytes; expected at least {smallest}: {beside} beside the slots, and {self.least} "
                f"slots of {stride} bytes in each of {pools} pools; give that much (the run goes on with the cap it had)"
            )
        return self.resize(self.within((nbytes - beside) // stride))

    def resize(self, rows: Sequence[int]) -> list[Resized]:
        """Gives each pool so many rows, between two passes. `InputError` for what cannot be, also where there is no memory for
        more; then nothing has changed. What ends it otherwise (an interrupt, a read that fails, no memory for the slots that
        there were) ends the session: experts are not where the controller has them."""
        number, controller, pools = self.number(), self.executor.controller, self.executor.pools
        if number is None:
            raise InputError(
                "pools: got a change of their size while a pass runs; expected it between two; make it from a streamer or a "
                "callback between steps"
            )
        if len(rows) != len(pools):
            raise InputError(f"pools: got {len(rows)} sizes; expected one for each of {len(pools)} pools; give as many")
        wanted = {p: count - controller.staging for p, count in enumerate(rows) if count != pools[p].rows}
        for (p, slots), top in zip(wanted.items(), [self.most()[p] for p in wanted], strict=True):
            check_resizable(controller.policy, controller.layout, p, slots, top - controller.staging)
        if not wanted:
            return []
        self.executor.check()
        self._drain()
        anew = self.anew or any(count > len(pool.buffer) for count, pool in zip(rows, pools, strict=True))
        short, made = None, []
        with self.executor.undivided():
            if anew:
                short = self._renew(list(rows))
            if short is None:
                made = [controller.resize(p, slots, number) for p, slots in wanted.items()]
            if anew:
                self._reload()
            else:
                for change in made:
                    self._arrange(change)
            self.executor.rearranged()
            self.history += [[number, change.pool, change.slots] for change in made]
        if short is not None:
            raise short
        return made

    def _drain(self) -> None:
        """No copy is on its way any more, on the device neither."""
        for p, pool in enumerate(self.executor.pools):
            for slot in range(pool.rows):
                if pool.state(slot) is CopyState.LOADING:
                    self.executor.transfer.wait(p, slot)
        self.executor.transfer.still()  # type: ignore[attr-defined]
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _renew(self, rows: list[int]) -> InputError | None:
        """Other memory, with nothing in it; or the old sizes again, and why."""
        self.moved()
        for pool in self.executor.pools:
            pool.release()
        self.executor.let_go()
        return renew_pools(self.executor.pools, rows, self.device)

    def _arrange(self, change: Resized) -> None:
        pool, controller = self.executor.pools[change.pool], self.executor.controller
        for source, target in change.moves:
            pool.move(source, target)
        for slot, key in enumerate(controller.occupants(change.pool).tolist()):
            if key < 0:
                pool.clear(slot)
        for slot in range(change.slots, pool.rows):  # what was staged there is nobody's
            pool.clear(slot)
        pool.resize(change.slots + controller.staging)

    def _reload(self) -> None:
        """Copies every resident from the store into its slot of the new memory."""
        executor, controller = self.executor, self.executor.controller
        executor.transfer.renewed()  # type: ignore[attr-defined]
        for p in range(controller.pools):
            first = int((controller.layout.pool_of == p).argmax())
            for slot, key in enumerate(controller.occupants(p).tolist()):
                if key >= 0:
                    layer, expert = divmod(key, controller.shape.experts)
                    executor.transfer.submit(ExpertKey(first + layer, expert), p, slot)
        self._drain()
