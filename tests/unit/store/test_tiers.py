"""Every kind of source gives the same bytes, whole and in parts; what a tier keeps is bounded and goes by its rule."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError, RgpuError
from rgpu.store import direct
from rgpu.store.checked import CheckedSource
from rgpu.store.direct import DirectStore
from rgpu.store.expert_store import ExpertStore
from rgpu.store.layout import ExpertLayout
from rgpu.store.ram_tier import RamTier
from rgpu.store.source import ExpertSource
from rgpu.store.tiers import KINDS, open_source
from rgpu.types import ExpertKey
from tests.unit.store.files import BLOCKS, EXPERTS, KEYS, LAYERS, SMALL, pattern, write_store

HELD = 3


def opened(path: Path, kind: str, **more: Any) -> ExpertSource:
    return open_source(path, kind, ram_experts=HELD if kind == "tier" else 0, **more)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.mark.parametrize("layout", [SMALL, BLOCKS], ids=["small", "blocks"])
@pytest.mark.parametrize("checked", [False, True])
def test_the_same_bytes_whole_and_in_parts(tmp_path: Path, kind: str, layout: ExpertLayout, checked: bool) -> None:
    source = opened(write_store(tmp_path / "x", layout), kind, checked=checked)
    assert (source.layer_ids, source.experts, source.layout) == ((0, 1), EXPERTS, layout)
    assert source.nbytes == (tmp_path / "x").stat().st_size
    assert source.shape(2).expert_bytes == (layout.payload_bytes,) * LAYERS
    out = np.empty(layout.nbytes + 100, np.uint8)
    for misplaced in (0, 1, 65):  # addresses that O_DIRECT cannot read to
        for key in KEYS:
            row = out[misplaced : misplaced + layout.nbytes]
            row[:] = 77
            source.read_into(key, row)
            assert np.array_equal(row, pattern(key, layout))
            assert np.array_equal(source.buffer(key), pattern(key, layout))
            if not checked:
                row[:] = 77
                part = layout.nbytes // 7
                for start in range(0, layout.nbytes, part):
                    source.read_into(key, row[start : start + part], start)
                assert np.array_equal(row, pattern(key, layout))
    with pytest.raises(ValueError, match="read-only"):
        source.buffer(KEYS[0])[0] = 1
    for key in (ExpertKey(0, EXPERTS), ExpertKey(LAYERS, 0), ExpertKey(-1, 0)):
        with pytest.raises(InputError, match="no expert"):
            source.read_into(key, out[: layout.nbytes])
    source.close()


def test_in_place(tmp_path: Path, kind: str) -> None:
    source = opened(write_store(tmp_path / "x"), kind)
    whole = kind in ("disk", "ram")
    assert source.in_place == whole
    for key in KEYS[:2]:
        source.buffer(key)
    if kind == "direct":
        assert source.pin(KEYS[0]) is None
        for ask in (lambda: source.rows_SB, lambda: source.row(KEYS[0])):
            with pytest.raises(InputError, match="serve misses with 'fetch'") as raised:
                ask()
            assert "\n" not in str(raised.value)
    for key in KEYS if whole else KEYS[:2] if kind == "tier" else []:
        row = source.pin(key)
        assert row is not None and row == source.row(key)
        assert np.array_equal(source.rows_SB[row, : SMALL.nbytes].numpy(), pattern(key, SMALL))
        source.unpin(key)
    if kind == "tier":
        assert source.pin(KEYS[5]) is None
        with pytest.raises(InputError, match="expert 0 of MoE layer 1 in place: got a store of kind 'tier'"):
            source.row(KEYS[5])
    source.close()


def test_bytes_that_are_held(tmp_path: Path, kind: str) -> None:
    source = opened(write_store(tmp_path / "x"), kind)
    size = source.nbytes
    expected = {"disk": (size, 0), "ram": (0, size), "direct": (0, 0), "tier": (0, HELD * SMALL.stride)}
    assert (source.mapped_bytes, source.ram_bytes) == expected[kind]
    source.close()


def test_closed(tmp_path: Path, kind: str) -> None:
    source, out = opened(write_store(tmp_path / "x"), kind), np.empty(SMALL.nbytes, np.uint8)
    source.read_into(KEYS[0], out)
    source.close()
    source.close()
    for read in (lambda: source.read_into(KEYS[0], out), lambda: source.buffer(KEYS[1])):
        with pytest.raises(RgpuError, match="closed"):
            read()


def test_kinds_and_numbers_that_cannot_be(tmp_path: Path) -> None:
    path = write_store(tmp_path / "x")
    with pytest.raises(InputError, match="unknown store 'tape': expected disk, ram, direct or tier"):
        open_source(path, "tape")
    for kind, experts in (("tier", 0), ("disk", 2)):
        with pytest.raises(InputError, match="experts in RAM: expected a number above 0 with 'tier'"):
            open_source(path, kind, ram_experts=experts)
    with pytest.raises(InputError, match="expected 1 to 10"):
        RamTier(ExpertStore(path), 0)
    assert RamTier(ExpertStore(path), 99).held == 10


@pytest.mark.parametrize("layout", [SMALL, BLOCKS], ids=["small", "blocks"])
def test_filesystems_that_refuse_uncached_reads(
    tmp_path: Path, layout: ExpertLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_store(tmp_path / "x", layout)
    original, source = os.preadv, DirectStore(path)
    source.uncached = True  # also where the tests' folder refuses

    def preadv(descriptor: int, buffers: list[Any], offset: int) -> int:
        if source.uncached:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(descriptor, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(direct.os, "preadv", preadv)  # a device with larger blocks refuses at its first read
        for key in KEYS:
            assert np.array_equal(source.buffer(key), pattern(key, layout))
    assert (source.uncached, source.refusal) == (False, "Invalid argument")
    with monkeypatch.context() as patch:
        patch.setattr(direct, "_UNCACHED", 0)
        none = DirectStore(path)
    assert (none.uncached, none.refusal) == (False, "no O_DIRECT on this system")
    assert np.array_equal(none.buffer(KEYS[3]), pattern(KEYS[3], layout))
    assert DirectStore(path, uncached=False).refusal == "not asked for"


class Below:
    """A source in memory that counts what is read from it."""

    def __init__(self, store: ExpertStore) -> None:
        self.store = store
        self.reads: list[ExpertKey] = []
        self.fails: set[ExpertKey] = set()
        self.during: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        if start == 0:
            self.reads.append(key)
        out[:] = 255
        self.during()
        if key in self.fails:
            raise InputError("read failed")
        self.store.read_into(key, out, start)


@pytest.fixture
def below(tmp_path: Path) -> Below:
    return Below(ExpertStore(write_store(tmp_path / "x")))


def read(tier: RamTier, key: ExpertKey, part: int = SMALL.nbytes) -> None:
    out = np.zeros(SMALL.nbytes, np.uint8)
    for start in range(0, SMALL.nbytes, part):
        tier.read_into(key, out[start : start + part], start)
    assert np.array_equal(out, pattern(key, SMALL))


@given(
    st.lists(st.tuples(st.sampled_from(KEYS[3:8]), st.sampled_from((700, SMALL.nbytes))), min_size=8), st.integers(1, 6)
)
@settings(max_examples=60, deadline=None)
def test_the_least_recently_read_goes(tmp_path_factory: Any, reads: list[tuple[ExpertKey, int]], held: int) -> None:
    path = tmp_path_factory.getbasetemp() / "lru"
    source = Below(ExpertStore(path if path.exists() else write_store(path)))
    tier, expected, model = RamTier(source, held), [], []  # type: ignore[var-annotated]
    for key, part in reads:
        if key in model:
            model.remove(key)
        else:
            expected.append(key)
            del model[: max(0, len(model) - held + 1)]
        model.append(key)
        read(tier, key, part)
    assert source.reads == expected
    assert (tier.misses, tier.hits) == (len(expected), len(reads) - len(expected))
    assert {key for key in KEYS if tier.pin(key) is not None} == set(model)


def test_a_tier_of_a_given_order_keeps_its_first(below: Below) -> None:
    tier = RamTier(below, 2, order=[KEYS[4], KEYS[1], KEYS[0]])
    for key in [*KEYS, *KEYS]:
        read(tier, key)
    assert [below.reads.count(key) for key in KEYS] == [1 if key in (KEYS[4], KEYS[1]) else 2 for key in KEYS]


def test_pinned_rows_stay_and_reads_pass_a_full_tier_by(below: Below) -> None:
    tier = RamTier(below, 1)
    read(tier, KEYS[0])
    row = tier.pin(KEYS[0])
    assert row == 0
    for key in KEYS[1:]:
        read(tier, key, 900)
    assert np.array_equal(tier.rows_SB[0, : SMALL.nbytes].numpy(), pattern(KEYS[0], SMALL))
    tier.unpin(KEYS[0])
    read(tier, KEYS[1])
    assert tier.pin(KEYS[0]) is None


def test_half_an_expert_is_never_taken_for_one(below: Below) -> None:
    tier, out = RamTier(below, 2), np.zeros(SMALL.nbytes, np.uint8)
    tier.read_into(KEYS[0], out[:700])  # a copy that is given up here
    assert tier.pin(KEYS[0]) is None
    tier.read_into(KEYS[0], out[1400:], 1400)  # out of order: past the tier
    assert np.array_equal(out[1400:], pattern(KEYS[0], SMALL)[1400:]) and tier.pin(KEYS[0]) is None
    read(tier, KEYS[0], 700)
    below.fails.add(KEYS[1])
    with pytest.raises(InputError, match="read failed"):
        read(tier, KEYS[1])
    assert tier.pin(KEYS[1]) is None
    below.fails.clear()
    read(tier, KEYS[1])
    assert below.reads == [KEYS[0], KEYS[0], KEYS[1], KEYS[1]]


def test_threads_share_a_tier(below: Below) -> None:
    tier, wrong = RamTier(below, 3), []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        out = np.zeros(SMALL.nbytes, np.uint8)
        for _ in range(300):
            key, part = KEYS[random.integers(len(KEYS))], int(random.choice((700, SMALL.nbytes)))
            for start in range(0, SMALL.nbytes, part):
                tier.read_into(key, out[start : start + part], start)
            if not np.array_equal(out, pattern(key, SMALL)):
                wrong.append(key)
            row = tier.pin(key)
            if row is not None:
                if not np.array_equal(tier.rows_SB[row, : SMALL.nbytes].numpy(), pattern(key, SMALL)):
                    wrong.append(key)
                tier.unpin(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_memory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_store(tmp_path / "x")

    def none(_: int) -> np.ndarray:
        raise MemoryError

    with pytest.raises(InputError, match="cannot hold 3 experts of .* lower the number of experts in RAM"):
        RamTier(ExpertStore(path), 3, allocate=none)
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", lambda *_: none(0))
        with pytest.raises(InputError, match="cannot hold expert store .* use store 'disk'"):
            ExpertStore(path, "ram")


def test_a_checked_source_wants_whole_blocks(tmp_path: Path) -> None:
    path = write_store(tmp_path / "x")
    source = CheckedSource(ExpertStore(path), path)
    with pytest.raises(RgpuError, match="not whole checksum blocks"):
        source.read_into(KEYS[0], np.empty(100, np.uint8), 100)
