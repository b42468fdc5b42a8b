"""Hits of the queue policies equal libcachesim's where both mean the same by the name; REASONS says why others differ."""

import os
import struct
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.policies.arc import Arc
from rgpu.policies.clock import Clock
from rgpu.policies.fifo import Fifo
from rgpu.policies.lirs import Lirs
from rgpu.policies.lru import Lru
from rgpu.policies.lru_k import LruK
from rgpu.policies.s3_fifo import S3Fifo
from rgpu.policies.sieve import Sieve
from rgpu.policies.slru import Slru
from rgpu.policies.two_q import TwoQ
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace, TraceHeader
from tests.unit.policies import textbook

SHIPPED = Path(__file__).parents[3] / "assets" / "traces" / "reference.safetensors"
SHARED = (
    Path(os.environ.get("RGPU_SHARED", Path(__file__).parents[4] / "shared")) / "traces/gpt-oss-20b_decode_mixedqa.npz"
)
TRACES = pytest.mark.parametrize("path", [SHIPPED, SHARED], ids=["reference", "gpt-oss-20b"])
REQUESTS, EXPERTS, SLOTS = 20_000, 32, (8, 16, 24)
EQUAL: list[tuple[str, dict[str, Any], Any]] = [
    ("LRU", {}, Lru()), ("FIFO", {}, Fifo()), ("Clock", {}, Clock()), ("Sieve", {}, Sieve()), ("TwoQ", {}, TwoQ()),
    ("ARC", {}, Arc()), ("SLRU", {}, Slru(segments=4, spill=True)), ("LRUK", {}, LruK(retained=0)),
    ("LRUK", {"k": 1}, LruK(k=1)), ("S3FIFO", {"small_size_ratio": 0.25}, S3Fifo(small=0.25, spill=True)),
]  # fmt: skip
REASONS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "SLRU": ({}, Slru(segments=4), "while the pool fills, libcachesim puts misses into upper segments (our `spill`)"),
    "S3FIFO": (
        {"small_size_ratio": 0.25}, S3Fifo(small=0.25),
        "until the first eviction libcachesim puts misses into main once small is full (our `spill`); with a small queue "
        "of one slot, the default below 20 slots, it refuses every object",
    ),
    "LRUK": (
        {"k": 3}, LruK(k=3, retained=0),
        "experts with fewer than K uses leave in order of loading there, of last use here (the paper's subsidiary policy); "
        "for K = 2 that is the same; and history ends at eviction there, which is retained=0 here",
    ),
    "LIRS": (
        {}, Lirs(),
        "a hit on a resident HIR that is no longer on S takes the bottom LIR off S there, and in the paper only renews the "
        "place in Q; and S is bounded by twice the slots there",
    ),
}  # fmt: skip


@cache
def requests(path: Path, layer: int) -> np.ndarray:
    """One layer's routed experts as single requests, so that no member of an event pins another."""
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    return np.asarray(load_trace(path, hidden=False).expert_ids[:, layer].ravel()[:REQUESTS], np.int64)


def their_hits(ids: np.ndarray, algorithm: str, slots: int, folder: Path, **given_: Any) -> list[bool]:
    libcachesim = pytest.importorskip("libcachesim", reason="libcachesim is a test extra")
    path = folder / "requests.oracleGeneral"
    path.write_bytes(b"".join(struct.pack("<IQIq", i, int(e) + 1, 1, -2) for i, e in enumerate(ids)))
    reader = libcachesim.TraceReader(str(path), trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    cache = getattr(libcachesim, algorithm)(cache_size=slots, **given_)
    return [bool(cache.get(request)) for request in reader]


def our_hits(ids: np.ndarray, policy: Any, slots: int) -> int:
    steps = np.arange(len(ids), dtype=np.int32)
    header = TraceHeader("requests", EXPERTS, 1, [0])
    trace = Trace(header, ids.astype(np.uint8).reshape(-1, 1, 1), np.array([0, len(ids)]), steps, steps)
    return replay(trace, policy, PoolConfig(slots=slots)).hits


@TRACES
@pytest.mark.parametrize(
    ("algorithm", "given_", "policy"), EQUAL, ids=[f"{a}{''.join(map(str, g))}" for a, g, _ in EQUAL]
)
def test_hits_equal_libcachesim(path: Path, algorithm: str, given_: Any, policy: Any, tmp_path: Path) -> None:
    for layer, slots in product((0, 5), SLOTS):
        ids = requests(path, layer)
        theirs = sum(their_hits(ids, algorithm, slots, tmp_path, **given_))
        assert our_hits(ids, policy, slots) == theirs, (layer, slots)


@pytest.mark.parametrize("algorithm", REASONS)
def test_hits_differ_from_libcachesim_for_a_written_reason(algorithm: str, tmp_path: Path) -> None:
    given_, policy, _ = REASONS[algorithm]
    counts = [
        (our_hits(ids, policy, slots), sum(their_hits(ids, algorithm, slots, tmp_path, **given_)))
        for layer, slots in product((0, 5), SLOTS)
        for ids in [requests(SHIPPED, layer)]
    ]
    assert any(a != b for a, b in counts)
    assert all(abs(a - b) < 0.01 * REQUESTS for a, b in counts)


@TRACES
def test_lirs_equals_libcachesim_until_the_reason_first_applies(path: Path, tmp_path: Path) -> None:
    shared = 0
    for layer, slots in product((0, 1, 2, 5), (12, 16, 24)):
        ids = requests(path, layer)
        theirs = their_hits(ids, "LIRS", slots, tmp_path)
        book = textbook.Lirs(slots)
        for expert, hit in zip(ids.tolist(), theirs, strict=True):
            renewed = expert in book.resident and expert not in book.stack
            if renewed or len(book.stack) > 2 * slots:
                break
            assert book.run(0, [expert])[0][0] == hit
            shared += 1
    assert shared > 1000
