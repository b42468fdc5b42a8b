"""What this machine can do at best, measured in the same run: memory bandwidth and the rate of a matrix product."""

from dataclasses import dataclass

import torch

from rgpu.experiments.benching.timing import Clock, call_seconds

READ_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Roof:
    """`gb_per_s`: fastest of plain reading and copying; `gflops`: a large matrix product (float32 on a CPU, bfloat16 on a
    GPU)."""

    gb_per_s: float
    gflops: float

    def seconds(self, nbytes: float, operations: float) -> float:
        """No call that reads `nbytes` and does `operations` is faster."""
        return max(nbytes / self.gb_per_s, operations / self.gflops) / 1e9

    def basis(self, nbytes: float, operations: float) -> str:
        """The measured number that binds such a call."""
        if nbytes / self.gb_per_s >= operations / self.gflops:
            return f"memory {self.gb_per_s:.4g} GB/s"
        return f"matrix product {self.gflops:.4g} GFLOP/s"


def measure_roof(device: torch.device, clock: Clock) -> Roof:
    """Measured with the clock and the threads of what is compared to it."""
    large = torch.ones(READ_BYTES // 4, device=device)
    other = torch.empty_like(large)
    reads = {
        READ_BYTES: (lambda: large.sum(), lambda: torch.dot(large, large)),
        2 * READ_BYTES: (lambda: other.copy_(large),),
    }
    best = 0.0
    for nbytes, ways in reads.items():
        for way in ways:
            best = max(best, nbytes / min(call_seconds(way, device, clock, 7)) / 1e9)
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    took = min(call_seconds(lambda: a @ b, device, clock, 7))
    return Roof(best, 2 * size**3 / took / 1e9)
