"""What a simulated run took: arrays a pass, and their summary in seconds. Legend: P passes, S sequences."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rgpu.replay.timing.clock import COMPUTE, CPU_WAIT, EXPOSED, SYNCED, WALL
from rgpu.replay.timing.facts import PassFacts
from rgpu.replay.timing.link import (
    CANCELLED,
    CANCELLED_COPIES,
    CPU_BYTES,
    CPU_EXPERTS,
    DEMAND_BYTES,
    DROPPED_UPLOADS,
    FILL_BYTES,
    LATE,
    LATE_HITS,
    LINK_COPIES,
    PENDING,
    PROACTIVE_BYTES,
    UPLOAD_BYTES,
    USEFUL,
    WASTED,
)

PERCENTILES = (50, 95, 99)
PARTS_OF_TIME = {"compute": COMPUTE, "exposed": EXPOSED, "cpu": CPU_WAIT, "sync": SYNCED}
_BYTES = {
    "demand": DEMAND_BYTES, "fill": FILL_BYTES, "proactive": PROACTIVE_BYTES, "upload": UPLOAD_BYTES, "cpu": CPU_BYTES,
    "useful": USEFUL, "late": LATE, "wasted": WASTED, "cancelled": CANCELLED, "pending": PENDING,
}  # fmt: skip
_COUNTS = {
    "late_hits": LATE_HITS, "cancelled_loads": CANCELLED_COPIES, "dropped_uploads": DROPPED_UPLOADS,
    "link_copies": LINK_COPIES, "cpu_experts": CPU_EXPERTS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TimingResult:
    """`parts` int64 [P, PARTS] picoseconds: wall, compute, exposed transfer, cpu, sync; the last four sum to the first.

    Bytes: `demand` over the link for misses, `fill`/`proactive`/`upload` moved in the background (what was cancelled never
    moved), `cpu` computed in host memory, `disk_bytes` read; of submitted proactive bytes: `useful` (landed before use),
    `late`, `wasted`, `cancelled`, `pending`."""

    machine: str
    miss: str
    overlap: str
    parts: np.ndarray
    facts: PassFacts = field(repr=False)
    tally: np.ndarray = field(repr=False)
    link_busy_ps: int = 0
    disk_busy_ps: int = 0
    disk_bytes: int = 0
    slices: np.ndarray | None = field(default=None, repr=False)

    @property
    def seconds_P(self) -> np.ndarray:
        """float64 [P]: wall time of each pass."""
        return self.parts[:, WALL] / 1e12  # type: ignore[no-any-return]

    @property
    def seconds(self) -> float:
        """Wall time of everything."""
        return float(self.parts[:, WALL].sum() / 1e12)

    @property
    def tpot_s(self) -> float:
        """Seconds per output token of a sequence, over the passes that evaluate generated tokens."""
        return self._per_step(WALL)

    def _per_step(self, column: int) -> float:
        decode = self.facts.decode
        steps = float(self.facts.steps[decode].sum())
        return float(self.parts[decode, column].sum()) / 1e12 / steps if steps else float("nan")

    def percentiles(self) -> dict[str, float]:
        """TPOT of single passes that evaluate generated tokens."""
        decode = self.facts.decode & (self.facts.steps > 0)
        if not decode.any():
            return {f"tpot_p{p}_s": float("nan") for p in PERCENTILES}
        each = self.parts[decode, WALL] / 1e12 / self.facts.steps[decode]
        return {f"tpot_p{p}_s": float(v) for p, v in zip(PERCENTILES, np.percentile(each, PERCENTILES), strict=True)}

    def ttft_s(self) -> np.ndarray:
        """float64: of each sequence with a prompt, in order, the seconds from the begin of its first pass to the end of its
        last prompt pass, whatever else these passes and those between them evaluate."""
        ends = np.cumsum(self.parts[:, WALL])
        begins = ends - self.parts[:, WALL]
        has = self.facts.prompt_end >= 0
        return (ends[self.facts.prompt_end[has]] - begins[self.facts.first[has]]) / 1e12  # type: ignore[no-any-return]

    def summary(self) -> dict[str, Any]:
        """The figures of one run, in seconds, bytes and shares; labelled simulated."""
        wall, ttft = float(self.parts[:, WALL].sum()), self.ttft_s()
        decode_s = float(self.parts[self.facts.decode, WALL].sum()) / 1e12
        return {
            "simulated": True, "hardware_profile": self.machine, "miss": self.miss, "overlap": self.overlap,
            "seconds": self.seconds, "tpot_s": self.tpot_s,
            **{f"tpot_{name}_s": self._per_step(column) for name, column in PARTS_OF_TIME.items()},
            **self.percentiles(),
            "ttft_s": float(ttft.mean()) if len(ttft) else None,
            "ttft_p95_s": float(np.percentile(ttft, 95)) if len(ttft) else None,
            "tokens_per_s": float(self.facts.outputs.sum()) / decode_s if decode_s else None,
            "link_busy_share": self.link_busy_ps / wall if wall else 0.0,
            "disk_busy_share": self.disk_busy_ps / wall if wall else 0.0,
            **{f"bytes_{name}": int(self.tally[i]) for name, i in _BYTES.items()}, "bytes_disk": self.disk_bytes,
            **{name: int(self.tally[i]) for name, i in _COUNTS.items()},
        }  # fmt: skip
