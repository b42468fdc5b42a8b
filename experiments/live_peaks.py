"""Peaks of a live run's memory, of the whole and of each part that has a cap of its own."""

import torch

from rgpu.memory.process import PeakMemory


class Peaks:
    """Of private memory (`ram`, watched) and, where there is a GPU, of its memory."""

    def __init__(self, ram: PeakMemory) -> None:
        self.ram = ram
        self._vram_before = 0  # of the parts that have ended

    @property
    def vram_bytes(self) -> int:
        """The largest so far on the card: what torch reserved, and what is there beside it now (CUDA's context, kernels)."""
        return max(self._vram_before, torch.cuda.max_memory_reserved() + _outside_torch())

    def end_part(self, vram: bool) -> int:
        """The largest since the part before ended, of the memory that caps which change are about."""
        if not vram:
            return self.ram.restart()
        part = torch.cuda.max_memory_reserved() + _outside_torch()
        self._vram_before = max(self._vram_before, part)
        torch.cuda.reset_peak_memory_stats()
        return part


def _outside_torch() -> int:
    """Of the GPU's memory what torch's allocator does not hold: context and kernels, and other processes on the card."""
    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - torch.cuda.memory_reserved())
