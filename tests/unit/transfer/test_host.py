"""The host transfer engine: order, failure, end."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.memory.slot_pool import SlotPool
from rgpu.store.layout import ExpertLayout
from rgpu.transfer.host import HostTransfer, TransferError
from rgpu.types import ExpertKey

LAYOUT = ExpertLayout(3, 5, torch.float32)


class FakeStore:
    """Experts whose every byte is their number; expert 99 fails, and a gate can hold all copies back."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.order: list[int] = []

    def buffer(self, key: ExpertKey) -> np.ndarray:
        self.gate.wait(10)
        self.order.append(key.expert)
        if key.expert == 99:
            raise OSError("read failed")
        return np.full(LAYOUT.nbytes, key.expert, np.uint8)


def engine(pools: int = 2) -> tuple[Any, list[SlotPool], HostTransfer]:
    store, slots = FakeStore(), [SlotPool(LAYOUT, 4) for _ in range(pools)]
    return store, slots, HostTransfer(store, slots)  # type: ignore[arg-type]


def test_copies_arrive_in_order_at_their_address() -> None:
    store, pools, transfer = engine()
    for expert in range(8):
        transfer.submit(ExpertKey(0, expert), expert % 2, expert // 2)
    transfer.submit(ExpertKey(0, 50), 1, 3)  # supersedes expert 7
    for pool in (0, 1):
        for slot in range(4):
            transfer.wait(pool, slot)
    transfer.close()
    assert store.order == [*range(8), 50]
    assert transfer.copies == 9
    for expert in [*range(7), 50]:
        pool, slot = (1, 3) if expert == 50 else (expert % 2, expert // 2)
        assert (pools[pool].buffer[slot, : LAYOUT.nbytes] == expert).all()
        assert pools[pool].key(slot) == ExpertKey(0, expert)


def test_wait_blocks_until_the_copy_is_there() -> None:
    store, pools, transfer = engine()
    store.gate.clear()
    transfer.submit(ExpertKey(0, 7), 0, 2)
    arrived = threading.Event()
    waiter = threading.Thread(target=lambda: (transfer.wait(0, 2), arrived.set()))
    waiter.start()
    assert not arrived.wait(0.05)
    transfer.wait(1, 0)  # another slot has nothing to wait for
    store.gate.set()
    waiter.join(10)
    assert arrived.is_set()
    assert (pools[0].buffer[2, : LAYOUT.nbytes] == 7).all()
    transfer.close()


def test_an_exception_in_the_thread_surfaces() -> None:
    _, _, transfer = engine()
    transfer.submit(ExpertKey(0, 99), 0, 0)
    with pytest.raises(TransferError, match="read failed") as raised:
        transfer.wait(0, 0)
    assert isinstance(raised.value.__cause__, OSError)
    with pytest.raises(TransferError):
        transfer.wait(1, 1)
    with pytest.raises(TransferError):
        transfer.submit(ExpertKey(0, 1), 0, 1)
    transfer.close()


def test_close_drops_what_was_not_begun_and_joins() -> None:
    store, _, transfer = engine()
    store.gate.clear()
    for slot in range(4):
        transfer.submit(ExpertKey(0, slot), 0, slot)
    threading.Timer(0.05, store.gate.set).start()
    transfer.close()
    transfer.close()
    assert len(store.order) <= 1
    assert not any(t.name == "rgpu-transfer" and t is transfer._thread for t in threading.enumerate())
    with pytest.raises(TransferError, match="closed"):
        transfer.submit(ExpertKey(0, 1), 0, 0)
