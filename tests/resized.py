"""Controllers whose pools change their size, looked at from inside."""

from typing import Any

import numpy as np

from rgpu.policies.loop import CAP, FREE, GROW, KEY_OF, REG, SHRINK, SLOT_OF, USED
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events


def whole(controller: Controller) -> None:
    """Slots and keys name each other, and what is free is exactly what nobody is in."""
    for pool, cap in enumerate(controller.slots):
        m = controller._m[pool]
        assert m[REG, CAP] == cap
        held = {int(key): slot for slot, key in enumerate(m[KEY_OF, :cap]) if key >= 0}
        assert held == {
            int(key): int(m[SLOT_OF, key]) for key in np.flatnonzero(m[SLOT_OF, : controller.layout.keys] >= 0)
        }
        assert len(held) == m[REG, USED]
        free = m[FREE, : cap - len(held)].tolist()
        assert sorted(free) == sorted(set(range(cap)) - set(held.values()))
        assert (m[KEY_OF, free] == -1).all()


def logged(entries: list[Any], made: Any, before: int) -> None:
    """A step for each slot: where its expert went, and who had to leave for it; -1 for nobody."""
    if made.slots == before:
        assert not entries
        return
    ((layer, _, kind, pools, codes, victims),) = entries
    assert (layer, kind, pools) == (-1, SHRINK if made.slots < before else GROW, (made.pool,))
    assert len(codes) == len(victims) == abs(made.slots - before)
    assert [victim for victim in victims if victim != -1] == made.evicted
    if kind == GROW or len(codes) == 1:
        moved = [target for _, target in made.moves] or [-1] * len(codes)
        assert list(codes) == moved


def run(policy: Any, trace: Any, pool: PoolConfig, changes: list[tuple[int, int, int]], **more: Any) -> Controller:
    """The trace's events with (pass, pool, slots) between them, the state looked at after each change."""
    controller = Controller(policy, trace.shape, pool, **more)
    controller.start()
    left = list(changes)
    for event in routing_events(trace):
        while event.layer == 0 and left and left[0][0] <= event.pass_id:
            number, at, slots = left.pop(0)
            before, had = controller.occupants(at), len(controller.log)
            made = controller.resize(at, slots, number)
            logged(controller.log[had:], made, len(before))
            after = controller.occupants(at)
            assert {*after[after >= 0]} == {*before[before >= 0]} - {*made.evicted}
            assert len(made.evicted) == max(0, int((before >= 0).sum()) - slots)
            assert all(source >= slots and before[source] == after[target] for source, target in made.moves)
            whole(controller)
        controller.observe(event)
        controller.ahead()
    whole(controller)
    return controller
