"""Which kind of source a store is opened as."""

from collections.abc import Sequence
from pathlib import Path

from rgpu.errors import InputError
from rgpu.store.checked import CheckedSource
from rgpu.store.direct import DirectStore
from rgpu.store.expert_store import ExpertStore
from rgpu.store.ram_tier import RamTier
from rgpu.store.source import ExpertSource
from rgpu.types import ExpertKey

DISK, RAM, DIRECT, TIER = "disk", "ram", "direct", "tier"
KINDS = (DISK, RAM, DIRECT, TIER)


def open_source(
    path: Path, kind: str = DISK, *, ram_experts: int = 0, order: Sequence[ExpertKey] | None = None, checked: bool = False
) -> ExpertSource:  # fmt: skip
    """The store at `path`. "disk": mapped, the page cache decides what stays in RAM. "ram": all of it in RAM. "direct": read
    past the page cache for each copy, none stays. "tier": `ram_experts` of them stay in RAM, see `RamTier` for `order`.

    `checked`: whatever is read from the file is compared with checksums. Anything wrong is an `InputError`.
    """
    if kind not in KINDS:
        raise InputError(f"unknown store '{kind}': expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if (ram_experts > 0) != (kind == TIER):
        raise InputError(
            f"store '{kind}' with {ram_experts} experts in RAM: expected a number above 0 with 'tier' and none otherwise"
        )
    file: ExpertSource = ExpertStore(path, kind) if kind in (DISK, RAM) else DirectStore(path)
    try:
        source = CheckedSource(file, path) if checked else file
        return RamTier(source, ram_experts, order) if kind == TIER else source
    except BaseException:
        file.close()
        raise
