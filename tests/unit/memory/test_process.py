"""Private memory of this process, now and at its peak."""

import threading
from pathlib import Path

import numpy as np
import pytest

from rgpu.memory import process
from rgpu.memory.process import PeakMemory, peak_rss_bytes, rss_anon_bytes

MIB = 1 << 20


def touched(nbytes: int) -> np.ndarray:
    block = np.empty(nbytes, np.uint8)
    block[::4096] = 1  # else it is no resident memory yet
    return block


def test_private_memory_counts_what_is_touched() -> None:
    before = rss_anon_bytes()
    block = touched(64 * MIB)
    assert 60 * MIB < rss_anon_bytes() - before < 80 * MIB
    assert peak_rss_bytes() >= rss_anon_bytes()
    del block


def test_mapped_pages_are_not_private(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    before = rss_anon_bytes()
    assert mapped[::4096].sum() == 0
    assert rss_anon_bytes() - before < 8 * MIB


def test_a_peak_outlives_what_made_it() -> None:
    with PeakMemory() as peak:
        before = peak.nbytes
        block = touched(64 * MIB)
        peak.look()
        del block
    assert peak.nbytes - before > 56 * MIB


def test_each_part_has_its_peak() -> None:
    with PeakMemory() as peak:
        first = peak.restart()
        block = touched(64 * MIB)
        second = peak.restart()
        del block
        third = peak.restart()
    assert second - first > 56 * MIB and second - third > 56 * MIB
    assert peak.nbytes == max(first, second, third)


def test_the_thread_sees_what_is_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, at = [1, 2, 9, 3], iter(range(100))
    looked = threading.Event()

    def look() -> int:
        number = next(at)
        if number > 3:
            looked.set()
        return seen[min(number, 3)]

    monkeypatch.setattr(process, "rss_anon_bytes", look)
    with PeakMemory(every_s=0.0001) as peak:
        assert looked.wait(30)
    assert peak.nbytes == 9
    assert not any(thread.name == "rgpu-memory" for thread in threading.enumerate())


def test_it_stops_when_what_it_watches_fails() -> None:
    with pytest.raises(KeyboardInterrupt), PeakMemory() as peak:
        raise KeyboardInterrupt
    assert peak.nbytes > 0
    assert not any(thread.name == "rgpu-memory" for thread in threading.enumerate())


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "Path", lambda _: Path("/nowhere/statm"))
    with PeakMemory() as peak:
        pass
    assert rss_anon_bytes() == peak.nbytes == 0
