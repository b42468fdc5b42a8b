"""How fast the engine's own transfer copies experts from a store into slots, where one copy follows another."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from rgpu.memory.slot_pool import make_pools
from rgpu.store.source import ExpertSource
from rgpu.transfer.host import HostTransfer
from rgpu.types import ExpertKey

BURSTS = (1, 2, 4, 8)  # copies submitted at once
PARTS = (0.25, 0.5, 1.0)  # of an expert, read alone


@dataclass(frozen=True, slots=True)
class CopyCosts:
    """A copy that follows another takes `latency_s` and its bytes at `bytes_per_s`."""

    bytes_per_s: float
    latency_s: float


def copy_costs(source: ExpertSource, rounds: int, seed: int = 0) -> CopyCosts:
    """Bandwidth from reads of parts of an expert by themselves; latency from what one copy more in a burst adds."""
    rng = np.random.default_rng(seed)
    layers = len(source.layer_ids)
    nbytes = source.layout.nbytes
    keys = [ExpertKey(int(rng.integers(layers)), int(rng.integers(source.experts))) for _ in range(rounds)]
    target = np.empty(nbytes, np.uint8)
    parts = [int(p * nbytes) for p in PARTS]
    alone = []
    for part in parts:
        took = []
        for key in keys:
            began = time.perf_counter()
            source.read_into(key, target[:part], 0)
            took.append(time.perf_counter() - began)
        alone.append(float(np.median(took)))
    per_byte, _ = line(np.asarray(parts, float), np.asarray(alone))
    pools = make_pools(source.layout, [max(BURSTS)], torch.device("cpu"))
    transfer = HostTransfer(source, pools)
    try:
        bursts = [float(np.median([_burst(transfer, keys, at, n) for at in range(rounds)])) for n in BURSTS]
    finally:
        transfer.close()
        pools[0].release()
    return split_copy(np.asarray(BURSTS, float), np.asarray(bursts), per_byte, nbytes)


def split_copy(copies: np.ndarray, seconds: np.ndarray, per_byte_s: float, nbytes: int) -> CopyCosts:
    """From seconds of bursts: what a copy more takes, of that the bytes' part, the rest latency."""
    each, _ = line(copies, seconds)
    bytes_s = min(max(per_byte_s * nbytes, 1e-9), max(each, 1e-9))
    return CopyCosts(nbytes / bytes_s, max(0.0, each - bytes_s))


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) by least squares."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def _burst(transfer: HostTransfer, keys: list[ExpertKey], at: int, copies: int) -> float:
    began = time.perf_counter()
    for slot in range(copies):
        transfer.submit(keys[(at + slot) % len(keys)], 0, slot)
    for slot in range(copies):
        transfer.wait(0, slot)
    return time.perf_counter() - began
