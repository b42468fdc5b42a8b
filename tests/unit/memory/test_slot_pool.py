"""Copy states of slots: legal moves only."""

import mmap

import pytest
import torch

from rgpu.errors import ConsistencyError, InputError
from rgpu.memory.process import peak_rss_bytes, rss_anon_bytes
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.store.layout import ALIGNMENT, ExpertLayout
from rgpu.types import ExpertKey

LAYOUT = ExpertLayout(5, 7, torch.float32)
A, B = ExpertKey(0, 1), ExpertKey(0, 2)


def pool(rows: int = 3) -> SlotPool:
    return SlotPool(LAYOUT, rows)


def test_rows_are_aligned_and_apart() -> None:
    made = pool()
    assert made.buffer.data_ptr() % 4096 == 0
    for row in made.buffer:
        assert row.data_ptr() % ALIGNMENT == 0
    first, second = (LAYOUT.views(row)[:2] for row in made.buffer[:2])
    made.buffer.zero_()
    for view in first:
        view.fill_(1)
    assert first[0].shape == (10, 7)
    assert first[1].shape == (7, 5)
    assert not any(view.any() for view in second)
    assert made.nbytes == made.buffer.nbytes


def test_the_last_copy_decides() -> None:
    made = pool()
    assert made.state(1) is CopyState.EMPTY
    first, second = made.begin(1, A), made.begin(1, B)
    made.finish(1, first)
    assert made.state(1) is CopyState.LOADING
    with pytest.raises(ConsistencyError, match="LOADING"):
        made.pin(1, B)
    made.finish(1, second)
    assert (made.state(1), made.key(1)) == (CopyState.READY, B)
    third = made.begin(1, A)
    made.finish(1, made.begin(1, B))  # the third was never made
    assert (made.state(1), made.key(1)) == (CopyState.READY, B)
    with pytest.raises(ConsistencyError, match="never queued, or twice"):
        made.finish(1, third)


def test_dropped_copies() -> None:
    made = pool()
    made.finish(0, made.begin(0, A))
    first, second = made.begin(0, B), made.begin(0, A)
    made.drop(0, first)  # superseded
    assert (made.state(0), made.key(0)) == (CopyState.LOADING, A)
    made.drop(0, second)
    assert (made.state(0), made.key(0)) == (CopyState.EMPTY, None)
    with pytest.raises(ConsistencyError, match="EMPTY"):
        made.pin(0, A)


def test_illegal_moves() -> None:
    made = pool()
    for end in (made.finish, made.drop):
        with pytest.raises(ConsistencyError, match="never queued"):
            end(0, 1)
    with pytest.raises(ConsistencyError, match="EMPTY"):
        made.pin(0, A)
    made.finish(0, made.begin(0, A))
    with pytest.raises(ConsistencyError, match="should hold"):
        made.pin(0, B)
    made.pin(0, A)
    with pytest.raises(ConsistencyError, match="while a computation reads"):
        made.begin(0, B)
    made.unpin(0)
    made.begin(0, B)


def test_a_pool_that_memory_has_no_room_for() -> None:
    with pytest.raises(
        InputError, match=r"\d+ slots: got no memory for \d+ bytes, \d+ a slot; lower pool.slots"
    ) as raised:
        pool(1 << 40)
    assert "\n" not in str(raised.value)


def test_process_memory() -> None:
    before = rss_anon_bytes()
    # a mapping of its own: a tensor may lie in memory that the process has used before
    held = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(b"\1" * len(held))
    assert rss_anon_bytes() >= before + len(held) // 2
    assert peak_rss_bytes() >= rss_anon_bytes()
