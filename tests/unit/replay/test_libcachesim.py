"""Hit counts equal libcachesim's (Yang et al. 2023) on real request streams, one expert at a time, one layer at a time."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.policies.belady import Belady
from rgpu.policies.fifo import Fifo
from rgpu.policies.lfu import Lfu
from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace, TraceHeader

libcachesim = pytest.importorskip("libcachesim", reason="libcachesim is a test extra")

SHIPPED = Path(__file__).parents[3] / "assets" / "traces" / "reference.safetensors"
SHARED = (
    Path(os.environ.get("RGPU_SHARED", Path(__file__).parents[4] / "shared")) / "traces/gpt-oss-20b_decode_mixedqa.npz"
)
REQUESTS = 20_000
CASES = [("LRU", Lru()), ("FIFO", Fifo()), ("LFU", Lfu()), ("Belady", Belady())]


def requests(path: Path, layer: int) -> np.ndarray:
    """One layer's routed experts as single requests: tokens in order, ranks in order."""
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    trace = load_trace(path, hidden=False)
    return np.asarray(trace.expert_ids[:, layer].ravel()[:REQUESTS], np.int64)


def oracle_hits(ids: np.ndarray, algorithm: str, slots: int, folder: Path) -> int:
    """libcachesim's integer hit count: one get a request, with each object's next access for Belady."""
    following = np.full(len(ids), -1, np.int64)
    last: dict[int, int] = {}
    for i in range(len(ids) - 1, -1, -1):
        following[i] = last.get(int(ids[i]), -1)
        last[int(ids[i])] = i
    path = folder / "requests.oracleGeneral"
    path.write_bytes(b"".join(struct.pack("<IQIq", i, int(e) + 1, 1, int(following[i])) for i, e in enumerate(ids)))
    reader = libcachesim.TraceReader(str(path), trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    cache = getattr(libcachesim, algorithm)(cache_size=slots)
    return sum(bool(cache.get(request)) for request in reader)


def single(ids: np.ndarray, experts: int) -> Trace:
    n = len(ids)
    header = TraceHeader("requests", experts, 1, [0])
    steps = np.arange(n, dtype=np.int32)
    return Trace(header, ids.astype(np.uint8).reshape(n, 1, 1), np.array([0, n]), steps, steps)


@pytest.mark.parametrize("path", [SHIPPED, SHARED], ids=["reference", "gpt-oss-20b"])
@pytest.mark.parametrize(("algorithm", "policy"), CASES, ids=[c[0] for c in CASES])
def test_hits_equal(path: Path, algorithm: str, policy: Any, tmp_path: Path) -> None:
    for layer in (0, 5):
        ids = requests(path, layer)
        for slots in (4, 8, 16, 24):
            ours = replay(single(ids, 32), policy, PoolConfig(slots=slots)).hits
            assert ours == oracle_hits(ids, algorithm, slots, tmp_path), (layer, slots)
