"""Memory that is kept as addresses and given back as pages."""

import ctypes
import mmap
import sys

import torch


def give_back(memory: torch.Tensor) -> int:
    """The kernel takes the whole pages of `memory`, contiguous on the host: they read as zeros and are private memory again
    only once they are written to. -> their bytes; 0 where the system does not do that (other than Linux)."""
    begin = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (memory.data_ptr() + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if not sys.platform.startswith("linux") or end <= begin:
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return 0 if madvise(begin, end - begin, mmap.MADV_DONTNEED) else end - begin
