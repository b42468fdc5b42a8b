"""Files that are truncated, replaced, rewritten or unreadable while open: one line or the right bytes, never wrong ones."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError, RgpuError
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.store import checked, store_file
from rgpu.store.direct import DirectStore
from rgpu.store.expert_store import ExpertStore
from rgpu.store.source import ExpertSource
from rgpu.store.tiers import KINDS, open_source
from rgpu.transfer.errors import TransferError
from rgpu.transfer.host import HostTransfer
from tests.unit.store.files import KEYS, SMALL, pattern, write_store

FILES = ("disk", "direct", "tier")


def opened(path: Path, kind: str, **more: Any) -> ExpertSource:
    return open_source(path, kind, ram_experts=2 if kind == "tier" else 0, **more)


def copy_all(source: ExpertSource) -> int:
    """Copies every expert through an engine, checks what is READY; returns how many were, raises what `wait` raises."""
    pool = SlotPool(source.layout, len(KEYS))
    engine = HostTransfer(source, [pool])
    try:
        for slot, key in enumerate(KEYS):
            engine.submit(key, 0, slot)
        for slot in range(len(KEYS)):
            engine.wait(0, slot)
    finally:
        engine.close()
        ready = [slot for slot in range(len(KEYS)) if pool.state(slot) is CopyState.READY]
        for slot in ready:
            assert np.array_equal(pool.buffer[slot, : SMALL.nbytes].numpy(), pattern(KEYS[slot], SMALL))
    return len(ready)


def one_line(raised: pytest.ExceptionInfo[BaseException]) -> bool:
    return "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("left", [0, 100, 4096, 10_000, -1])
def test_truncated_while_open(tmp_path: Path, kind: str, left: int) -> None:
    path = write_store(tmp_path / "x")
    source = opened(path, kind)
    os.truncate(path, left if left >= 0 else path.stat().st_size - 1)
    with pytest.raises(InputError, match="truncated expert store .* delete it and run again") as raised:
        copy_all(source)
    assert one_line(raised)
    if kind == "disk":
        for ask in (lambda: source.row(KEYS[0]), lambda: source.rows_SB):
            with pytest.raises(InputError, match="truncated"):
                ask()
    source.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_replaced_by_rename_is_harmless(tmp_path: Path, kind: str, how: str) -> None:
    path = write_store(tmp_path / "x")
    source = opened(path, kind)
    if how == "replaced":
        os.replace(write_store(tmp_path / "y", change=1), path)
    else:
        path.unlink()
    assert copy_all(source) == len(KEYS)
    source.close()


@pytest.mark.parametrize("kind", FILES)
def test_written_to_while_open(tmp_path: Path, kind: str) -> None:
    path = write_store(tmp_path / "x")
    source = opened(path, kind)
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\1\2\3")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))  # clocks of file systems may be coarser than this test
    with pytest.raises(InputError, match="was written to while in use") as raised:
        copy_all(source)
    assert one_line(raised)
    source.close()


@pytest.mark.parametrize("kind", FILES)
def test_written_to_while_a_copy_reads(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write_store(tmp_path / "x"), np.empty(SMALL.nbytes, np.uint8)
    source = opened(path, kind)
    copyto, preadv = np.copyto, os.preadv

    def write() -> None:
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))

    if kind == "disk":
        monkeypatch.setattr(np, "copyto", lambda *a: (copyto(*a), write()))
    else:
        monkeypatch.setattr(store_file.os, "preadv", lambda *a: (preadv(*a), write())[0])
    with pytest.raises(InputError, match="was written to while in use"):
        source.read_into(KEYS[0], out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_that_rotted(tmp_path: Path, kind: str) -> None:
    path = write_store(tmp_path / "x")
    assert checked.checksums(path).shape == (len(KEYS), 1)
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(4096 + 3 * SMALL.stride + 17)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before, before))
    source = opened(path, kind, checked=True)
    with pytest.raises(InputError, match="damaged expert store .*: expert 3 of MoE layer 0 differs") as raised:
        copy_all(source)
    assert one_line(raised)
    source.close()


def test_checksums_follow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, beside = write_store(tmp_path / "x"), tmp_path / "x.crc.npz"
    sums = checked.checksums(path)
    with monkeypatch.context() as patch:
        patch.setattr(checked, "_sum", None)
        assert np.array_equal(checked.checksums(path), sums)  # read, not summed
    write_store(path, change=1)
    os.utime(path, ns=(5, 5))
    assert not np.array_equal(checked.checksums(path), sums)
    beside.write_bytes(beside.read_bytes()[:50])
    write_store(path)
    os.utime(path, ns=(5, 5))
    assert np.array_equal(checked.checksums(path), sums)
    beside.unlink()
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(checked.os, "replace", refuse)
        with pytest.raises(InputError, match="cannot write .*No space left"):
            checked.checksums(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def reads(monkeypatch: pytest.MonkeyPatch, change: Callable[[Callable[..., int], int, list[Any], int], int]) -> None:
    original = os.preadv
    monkeypatch.setattr(store_file.os, "preadv", lambda d, b, at: change(original, d, b, at))


@pytest.mark.parametrize("uncached", [False, True])
@pytest.mark.parametrize("most", [1, 700, 4096])
def test_reads_that_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncached: bool, most: int) -> None:
    source = DirectStore(write_store(tmp_path / "x"), uncached)

    def short(original: Callable[..., int], descriptor: int, buffers: list[Any], at: int) -> int:
        size = len(buffers[0])
        got = original(descriptor, buffers, at)
        told = min(got, max(most, size - most) if uncached else most)
        buffers[0][told:] = bytes(size - told)  # what was not told was not read
        return told

    reads(monkeypatch, short)
    for key in KEYS[:3]:
        assert np.array_equal(source.buffer(key), pattern(key, SMALL))


@pytest.mark.parametrize("kind", ["direct", "tier", "ram"])
def test_a_disk_that_fails(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_store(tmp_path / "x")
    source = None if kind == "ram" else opened(path, kind)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    reads(monkeypatch, fail)
    with pytest.raises(InputError, match="Input/output error; check the disk it is on") as raised:
        copy_all(source or opened(path, "ram"))
    assert one_line(raised)


@pytest.mark.parametrize("uncached", [False, True])
def test_a_read_that_ends_too_early(tmp_path: Path, uncached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = DirectStore(write_store(tmp_path / "x"), uncached)
    reads(monkeypatch, lambda *_: 0)
    with pytest.raises(InputError, match="short read"):
        source.buffer(KEYS[0])


@pytest.mark.parametrize("kind", FILES)
def test_close_while_a_copy_reads(tmp_path: Path, kind: str) -> None:
    """The descriptor must not become another file's in the middle of a read."""
    path = write_store(tmp_path / "x")
    decoy = tmp_path / "decoy"
    decoy.write_bytes(bytes(path.stat().st_size))
    for _ in range(20):
        source, started = opened(path, kind), threading.Event()
        outcome: list[Any] = []

        def work(source: ExpertSource = source, started: Any = started, outcome: Any = outcome) -> None:
            out = np.zeros(SMALL.nbytes, np.uint8)
            try:
                while True:
                    for key in KEYS:
                        out[:] = 0
                        source.read_into(key, out)
                        started.set()
                        if not np.array_equal(out, pattern(key, SMALL)):
                            outcome.append("wrong bytes")
                            return
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(10)
        source.close()
        others = [decoy.open("rb") for _ in range(4)]
        thread.join(10)
        for other in others:
            other.close()
        assert not thread.is_alive() and outcome and outcome[0] != "wrong bytes"
        assert isinstance(outcome[0], RgpuError)


def test_a_descriptor_stays_open_for_the_read_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, preadv = DirectStore(write_store(tmp_path / "x")), os.preadv
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(store_file.os, "preadv", lambda *a: (source.close(), preadv(*a))[1])
    assert np.array_equal(source.buffer(KEYS[0]), pattern(KEYS[0], SMALL))
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(RgpuError, match="closed"):
        source.buffer(KEYS[0])


def test_a_store_closed_under_an_engine(tmp_path: Path) -> None:
    source, pool = ExpertStore(write_store(tmp_path / "x")), SlotPool(SMALL, 2)
    engine = HostTransfer(source, [pool])
    source.close()
    engine.submit(KEYS[0], 0, 0)
    with pytest.raises(TransferError, match="is closed"):
        engine.wait(0, 0)
    engine.close()


def test_missing_and_unreadable(tmp_path: Path) -> None:
    for kind in KINDS:
        with pytest.raises(InputError, match="cannot read expert store .*No such file"):
            opened(tmp_path / "none", kind)
        with pytest.raises(InputError, match="cannot read expert store"):
            opened(tmp_path, kind)  # a folder


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    path = write_store(tmp_path / "x")
    before = len(os.listdir("/proc/self/fd"))
    for kind in KINDS:
        source = opened(path, kind)
        source.buffer(KEYS[0])
        source.close()
        opened(path, kind)  # forgotten
    os.truncate(path, 5000)
    for kind in KINDS:
        with pytest.raises(InputError, match="truncated"):
            opened(path, kind)
    assert len(os.listdir("/proc/self/fd")) == before
