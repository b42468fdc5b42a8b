"""Host memory that a GPU copies from, and reads, by itself: page-locked while it is used."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from rgpu.errors import InputError


@contextmanager
def page_locked(memory: torch.Tensor) -> Iterator[None]:
    """`memory`, contiguous on the host, stays in RAM in here, and the GPU reaches it. Where it is, whole: an allocation by
    torch's own page-locking allocator would take up to twice the bytes."""
    if memory.is_pinned():
        yield
        return
    runtime = torch.cuda.cudart()
    address, nbytes = memory.untyped_storage().data_ptr(), memory.untyped_storage().nbytes()
    code = int(runtime.cudaHostRegister(address, nbytes, 0))
    if code:
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")  # the runtime reports its last error once more, with the next launch
        raise InputError(
            f"cannot lock {nbytes} bytes of host memory for the GPU: got CUDA error {code}; expected that much free memory "
            "and a limit (ulimit -l) that allows it; use store=tier with fewer ram_experts"
        )
    try:
        yield
    finally:
        try:
            torch.cuda.synchronize()
        finally:
            runtime.cudaHostUnregister(address)
