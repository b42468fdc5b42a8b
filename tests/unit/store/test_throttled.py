"""An emulated link is never faster than it says, carries one read at a time, and changes no byte."""

import threading
from pathlib import Path

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.store.throttled import ThrottledSource
from rgpu.store.tiers import open_source
from tests.unit.store.files import EXPERTS, KEYS, SMALL, pattern, write_store


class Hand:
    """A clock moved by sleeping, and by reads that take `read_s`."""

    def __init__(self) -> None:
        self.at, self.slept = 0.0, []  # type: tuple[float, list[float]]

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds


class Slow:
    """A source whose reads take a while on the hand's clock."""

    def __init__(self, hand: Hand, read_s: float) -> None:
        self.hand, self.read_s = hand, read_s

    def read_into(self, key: object, out: np.ndarray, start: int = 0) -> None:
        self.hand.at += self.read_s


@pytest.mark.parametrize(("read_s", "sleeps_s"), [(0.0, 3.5), (1.0, 2.5), (9.0, None)])
def test_a_read_takes_latency_and_bytes_or_longer(read_s: float, sleeps_s: float | None) -> None:
    hand = Hand()
    source = ThrottledSource(Slow(hand, read_s), 100.0, 0.5, now=hand.now, sleep=hand.sleep)  # type: ignore[arg-type]
    source.read_into(KEYS[0], np.empty(300, np.uint8))
    assert hand.slept == ([] if sleeps_s is None else [pytest.approx(sleeps_s)])
    assert hand.at == pytest.approx(max(3.5, read_s))


def test_latency_is_paid_once_an_expert() -> None:
    hand = Hand()
    source = ThrottledSource(Slow(hand, 0.0), 100.0, 0.5, now=hand.now, sleep=hand.sleep)  # type: ignore[arg-type]
    for start in (0, 100, 200):
        source.read_into(KEYS[0], np.empty(100, np.uint8), start)
    assert hand.at == pytest.approx(3.5)


def test_two_threads_share_the_link() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    class Counting:
        def read_into(self, key: object, out: np.ndarray, start: int = 0) -> None:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.002)
            with lock:
                inside -= 1

    source = ThrottledSource(Counting(), 1e9)  # type: ignore[arg-type]
    threads = [threading.Thread(target=source.read_into, args=(KEYS[0], np.empty(8, np.uint8))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize("kind", ["disk", "direct"])
def test_everything_else_is_the_source_below(tmp_path: Path, kind: str) -> None:
    below = open_source(write_store(tmp_path / "x"), kind)
    source = ThrottledSource(below, 1e12)
    for name in ("layer_ids", "experts", "layout", "nbytes", "mapped_bytes", "ram_bytes", "in_place"):
        assert getattr(source, name) == getattr(below, name)
    assert source.shape(2) == below.shape(2)
    out = np.empty(SMALL.nbytes, np.uint8)
    for key in KEYS:
        source.read_into(key, out)
        assert np.array_equal(out, pattern(key, SMALL)) and np.array_equal(source.buffer(key), out)
        row = source.pin(key)
        assert row == (None if kind == "direct" else key.layer * EXPERTS + key.expert)
        source.unpin(key)
    if kind == "disk":
        assert source.row(KEYS[3]) == 3 and source.rows_SB.shape == below.rows_SB.shape
    source.close()
    with pytest.raises(Exception, match="closed"):
        below.buffer(KEYS[0])


@pytest.mark.parametrize(("rate", "latency"), [(0.0, 0.0), (float("nan"), 0.0), (1e9, -1.0)])
def test_no_such_link(rate: float, latency: float) -> None:
    with pytest.raises(InputError, match=r"emulated link: got .*; expected a rate above 0"):
        ThrottledSource(None, rate, latency)  # type: ignore[arg-type]
