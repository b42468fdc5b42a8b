"""How fast bytes get from host memory to a GPU: copies from pinned memory, and the gather kernel reading it directly."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from rgpu.experiments.benching.timing import call_seconds
from rgpu.kernels.gather import gather

COLUMNS = ("way", "mib", "gb_per_s_p50", "gb_per_s_best", "us_p50", "repeats", "right")
MIB = 2**20
SIZES = (1, 4, 16, 64)
HOST_BYTES = 512 * MIB  # rotated through, so that a copy never finds its source in a cache
REPEATS = 30


def measure(device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for every way and size; what arrived is compared with what was sent."""
    host = torch.empty(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
    host.view(torch.int64).random_()
    zero, one = (torch.tensor([value], dtype=torch.int32, device=device) for value in (0, 1))
    for mib in SIZES:
        chunks = host.view(-1, mib * MIB)
        there = torch.empty(1, mib * MIB, dtype=torch.uint8, device=device)
        back = torch.empty(1, mib * MIB, dtype=torch.uint8, pin_memory=True)
        rows = [torch.tensor([n], dtype=torch.int32, device=device) for n in range(REPEATS)]
        last = chunks[(REPEATS - 1) % len(chunks)]

        def copied(n: int, there: torch.Tensor = there, chunks: torch.Tensor = chunks) -> None:
            there[0].copy_(chunks[n % len(chunks)], non_blocking=True)

        def returned(n: int, there: torch.Tensor = there, back: torch.Tensor = back) -> None:
            back.copy_(there, non_blocking=True)

        def gathered(
            n: int, there: torch.Tensor = there, chunks: torch.Tensor = chunks, rows: list[torch.Tensor] = rows
        ) -> None:
            gather(chunks, there, rows[n % len(chunks)], zero, one)

        yield _row("memcpy_to_device", mib, device, copied, last, there)
        yield _row("memcpy_to_host", mib, device, returned, last, back)
        there.zero_()
        yield _row("gather_from_host", mib, device, gathered, last, there)


def _row(
    way: str, mib: int, device: torch.device, call: Callable[[int], object], sent: torch.Tensor, arrived: torch.Tensor
) -> dict[str, Any]:
    call(0)  # compiles, where there is something to compile
    took = [call_seconds(partial(call, n), device, "device", 1)[0] for n in range(REPEATS)]
    torch.cuda.synchronize(device)
    right = torch.equal(arrived[0].cpu(), sent)
    took.sort()
    speed = [mib * MIB / seconds / 1e9 for seconds in took]
    return {
        "way": way, "mib": mib, "gb_per_s_p50": round(speed[REPEATS // 2], 3), "gb_per_s_best": round(speed[0], 3),
        "us_p50": round(1e6 * took[REPEATS // 2], 2), "repeats": REPEATS, "right": right,
    }  # fmt: skip
