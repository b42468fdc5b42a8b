"""Bytes that a predictor takes, said before they are taken: a training that cannot fit is refused in a line.

Legend: L MoE layers, H rows of a forecast, E experts, D hidden size.
"""

import resource
from pathlib import Path

from rgpu.errors import InputError

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_ENOUGH = 1 << 62  # limits as large as this are none


def map_bytes(layers: int, experts: int, horizon: int, size: int) -> int:
    """float32 maps of `size` inputs, and their biases, to every row of a forecast that exists, over all layers."""
    rows = sum(min(horizon, layers - 1 - layer) + 1 for layer in range(layers))
    return 4 * rows * experts * (size + 1)


def free_bytes() -> int | None:
    """Memory that this process can still have: of the machine, of its control group, under its own limit of private memory.

    None where none of them is known (other systems than Linux)."""
    found = [_field(MEMINFO, "MemAvailable:", 1024)]
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is not None and used is not None:
        file, shared = (_field(CGROUP / "memory.stat", f"{name} ", 1) or 0 for name in ("file", "shmem"))
        found.append(
            limit - used + file - shared
        )  # the system takes pages of files back, but not those in memory alone
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if 0 <= soft < _ENOUGH:
        found.append(soft - (_field(Path("/proc/self/status"), "VmData:", 1024) or 0))
    known = [max(0, one) for one in found if one is not None]
    return min(known) if known else None


def check_room(who: str, needed: int, shape: str, remedy: str) -> None:
    """`InputError` where training takes more than `free_bytes`; nothing has been allocated for it then."""
    free = free_bytes()
    if free is not None and needed > free:
        raise InputError(
            f"predictor {who}: got {needed / 2**30:.3g} GiB to train for {shape}; expected at most the {free / 2**30:.3g} GiB "
            f"that are free; {remedy}"
        )


def _field(path: Path, name: str, unit: int) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.startswith(name)), None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max": no limit
        return None
