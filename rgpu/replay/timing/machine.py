"""What the clock needs to know of a machine: rates and fixed costs, in bytes, operations and seconds.

`compute` is the device that holds the slots (a GPU, or the CPU of a machine without one), `link` is what loads travel
over (PCIe, or the disk of a machine without a GPU).
"""

import math
from dataclasses import dataclass

import numpy as np

from rgpu.errors import InputError

# Columns of `Machine.packed`: picoseconds, and picoseconds per byte or operation.
(
    BYTE, FLOP, LAUNCH, LINK_BYTE, COPY, CHUNK, READ_BYTE, SYNC, CPU_BYTE, CPU_SLOW_BYTE, CPU_FLOP, CPU_CALL, HOST_BYTE,
    DISK_BYTE, DISK_READ, SUBMIT, START, IN_PLACE, COLUMNS,
) = range(19)  # fmt: skip
PS = 1e12  # the clock counts whole picoseconds, so that parts sum to the whole exactly


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Rates per second and costs in seconds; an infinite rate takes no time. `cpu_bytes_per_s` 0: the CPU computes no
    experts. `host_bytes_per_s`: memory that CPU compute and copies share. `zero_copy_bytes_per_s`: kernels that read host
    memory over the link (0: cannot). `link_chunk_bytes` 0: a copy once begun is never interrupted. `submit_s`: what a copy
    takes of the device's own time, where the device is the processor that also submits it; `start_s`: what it takes to set
    idle copying going, once a wave or batch of loads. `in_place`: what "the CPU" computes is computed by the device itself,
    after its own members (a machine without a GPU)."""

    name: str
    bytes_per_s: float
    flop_per_s: float = math.inf
    launch_s: float = 0.0
    link_bytes_per_s: float
    link_latency_s: float = 0.0
    link_chunk_bytes: float = 0.0
    zero_copy_bytes_per_s: float = 0.0
    sync_s: float = 0.0
    cpu_bytes_per_s: float = 0.0
    cpu_flop_per_s: float = math.inf
    cpu_call_s: float = 0.0
    host_bytes_per_s: float = math.inf
    disk_bytes_per_s: float = 0.0
    disk_latency_s: float = 0.0
    submit_s: float = 0.0
    start_s: float = 0.0
    in_place: bool = False

    def __post_init__(self) -> None:
        for name in ("bytes_per_s", "flop_per_s", "link_bytes_per_s", "host_bytes_per_s", "cpu_flop_per_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"machine {self.name}: got {name}={getattr(self, name)}; expected a rate above 0")

    @property
    def link_rate(self) -> float:
        """Bytes per second of a copy: the link, or the memory it reads from."""
        return min(self.link_bytes_per_s, self.host_bytes_per_s)

    @property
    def zero_copy_rate(self) -> float:
        return min(self.zero_copy_bytes_per_s, self.host_bytes_per_s)

    @property
    def cpu_rate(self) -> float:
        """Bytes per second of experts computed on the CPU while no copy shares its memory."""
        return min(self.cpu_bytes_per_s, self.host_bytes_per_s)

    @property
    def cpu_rate_beside_copies(self) -> float:
        """The same while a copy takes its part of host memory first."""
        if math.isinf(self.link_rate):
            return self.cpu_rate
        return min(self.cpu_rate, self.host_bytes_per_s - self.link_rate)

    def packed(self) -> np.ndarray:
        """float64 [COLUMNS], picoseconds; infinite where a rate is 0."""
        out = np.zeros(COLUMNS)
        rates = {
            BYTE: self.bytes_per_s, FLOP: self.flop_per_s, LINK_BYTE: self.link_rate, READ_BYTE: self.zero_copy_rate,
            CPU_BYTE: self.cpu_rate, CPU_SLOW_BYTE: self.cpu_rate_beside_copies, CPU_FLOP: self.cpu_flop_per_s,
            HOST_BYTE: self.host_bytes_per_s, DISK_BYTE: self.disk_bytes_per_s,
        }  # fmt: skip
        for column, rate in rates.items():
            out[column] = PS / rate if rate > 0 else math.inf
        fixed = {
            LAUNCH: self.launch_s, COPY: self.link_latency_s, SYNC: self.sync_s, CPU_CALL: self.cpu_call_s,
            DISK_READ: self.disk_latency_s, SUBMIT: self.submit_s, START: self.start_s,
        }  # fmt: skip
        for column, seconds in fixed.items():
            out[column] = math.ceil(seconds * PS)
        out[IN_PLACE] = self.in_place
        chunk = self.link_chunk_bytes * out[LINK_BYTE]
        out[CHUNK] = math.ceil(min(chunk, 2.0**60)) if 0 < chunk < math.inf else 0
        return out
