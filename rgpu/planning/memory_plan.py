"""How many expert slots fit beside everything else in a budget of device and host memory, and where each byte goes.

With a GPU, dense weights, KV cache, workspace and slots are in its memory, and host memory holds the experts that loads come
from (page-locked where it holds all of them; the rest stays on disk). Without one all of it is private memory of the process,
and the store is a mapped file, whose pages the kernel may drop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rgpu.errors import InputError
from rgpu.planning.model_facts import ModelFacts
from rgpu.planning.workspace import workspace_bytes
from rgpu.replay.placement import place_layers

MIB = 1 << 20
PROCESS_BYTES = 512 * MIB
READ_BUFFERS = 6  # of an expert each, for what is on its way from disk to a GPU
CUDA_BYTES = 960 * MIB
PROCESS_SOURCE = "measured: 390 MiB of Python, torch and transformers after a run of the reference model, rounded up"
CUDA_SOURCE = (
    "measured: 800 to 905 MiB of context, kernels and libraries outside torch's allocator on an H200, rounded up"
)


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One use of memory: its `name`, `bytes`, `where` ("vram" or "ram") and `how` the number was found."""

    name: str
    bytes: int
    where: str
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """A budget and what fills it. `vram` None: no GPU. `slots` of each of `pools` pools, staging included;
    `ram_experts` held in host memory and `disk_experts` that find no room there (without a GPU 0 and all)."""

    vram: int | None
    ram: int
    context: int
    batch: int
    scope: str
    staging: int
    rows: tuple[MemoryRow, ...]
    pools: int
    slots: int
    slot_bytes: int
    experts: int
    top_k: int
    ram_experts: int
    disk_experts: int

    @property
    def share(self) -> float:
        """Of all experts, how many have a slot."""
        return self.pools * self.slots / self.experts

    def used(self, where: str) -> int:
        """Bytes of the rows in "vram" or "ram"."""
        return sum(row.bytes for row in self.rows if row.where == where)

    @property
    def tight(self) -> bool:
        """Whether a token's experts do not all fit beside each other, so that it is served in waves."""
        return self.slots < self.top_k


@dataclass(frozen=True, slots=True)
class _Budget:
    """Rows that do not depend on what is left, in the order they are shown, and the place where slots are."""

    fixed: tuple[MemoryRow, ...]
    place: str
    pools: int
    keys: int
    slot: int
    least: int
    loading: int  # of the same place while weights are read, before there are slots

    def taken(self, where: str) -> int:
        return sum(row.bytes for row in self.fixed if row.where == where)

    def smallest(self, where: str) -> int:
        """The smallest cap that works: fixed rows with the fewest slots (and room to load), or (host memory of a GPU) one
        expert and the buffers that the others pass through."""
        if where == self.place:
            return max(self.loading, self.taken(where) + self.pools * self.least * self.slot)
        return self.taken(where) + min(self.pools * self.keys, 1 + READ_BUFFERS) * self.slot

    def slots(self, cap: int) -> int:
        """Slots of each pool under `cap`; 0 where it is too small."""
        if cap < self.smallest(self.place):
            return 0
        return min(self.keys, (cap - self.taken(self.place)) // (self.pools * self.slot))


def plan_memory(
    facts: ModelFacts, *, vram: int | None, ram: int, context: int, batch: int = 1, scope: str = "layer", staging: int = 1,
    prefill_rows: int | None = None, process_bytes: int = PROCESS_BYTES, process_source: str = PROCESS_SOURCE,
    cuda_bytes: int = CUDA_BYTES, more: Sequence[MemoryRow] = (),
) -> MemoryPlan:  # fmt: skip
    """Fills `vram` (bytes of device memory; None: no GPU) and `ram` (bytes of this process's host memory).

    For `batch` sequences of up to `context` tokens. `scope` and `staging` as of a pool; `prefill_rows`: tokens evaluated in
    one pass, over the batch (None: whole prompts). `more`: what else a run holds from beginning to end. Slots take what is
    left, at least staging + 1 a pool and at most all experts. Where host memory holds not all experts, the others pass through
    buffers there. Raises `InputError` with the smallest caps that work, exact to
    the byte.
    """
    budget = _budget(facts, vram is not None, context, batch, scope, staging, prefill_rows, process_bytes,
                     process_source, cuda_bytes, more)  # fmt: skip
    caps = {"ram": ram} if vram is None else {"vram": vram, "ram": ram}
    short = {where: least for where, cap in caps.items() if cap < (least := budget.smallest(where))}
    if short:
        got = ", ".join(f"memory.{where}={caps[where]}" for where in short)
        most = max((row for row in budget.fixed if row.where in short), key=lambda row: row.bytes)
        remedy = " ".join(f"memory.{where}={least}" for where, least in short.items())
        sizes = ", ".join(f"{readable(least)} of {where}" for where, least in short.items())
        raise InputError(
            f"memory: got {got} for {facts.name} with context {context} and batch {batch}; expected at least {sizes} "
            f"(most of it {most.name}, {readable(most.bytes)}); give {remedy}, or less context, batch or prefill_rows, or a "
            "smaller format"
        )
    place = budget.place
    slots = budget.slots(caps[place])
    pinned = 0
    rows = list(budget.fixed)
    total = facts.layers * facts.experts
    how = f"{budget.pools} pools of {slots} slots of {budget.slot} bytes, staging {staging} of each included"
    rows.append(MemoryRow("expert slots", budget.pools * slots * budget.slot, place, how))
    if vram is not None:
        pinned = min(total, (ram - budget.taken("ram")) // budget.slot)
        if pinned < total:
            pinned -= READ_BUFFERS
            how = f"{READ_BUFFERS} experts on their way from disk to the GPU"
            rows.append(MemoryRow("read buffers", READ_BUFFERS * budget.slot, "ram", how))
        how = f"{pinned} of {total} experts held in RAM"
        how += ", page-locked" if pinned == total else "; the rest is read from disk"
        rows.append(MemoryRow("experts in host memory", pinned * budget.slot, "ram", how))
    return MemoryPlan(
        vram=vram, ram=ram, context=context, batch=batch, scope=scope, staging=staging, rows=tuple(rows),
        pools=budget.pools, slots=slots, slot_bytes=budget.slot, experts=total, top_k=facts.top_k, ram_experts=pinned,
        disk_experts=total - pinned,
    )  # fmt: skip


def slots_at(
    facts: ModelFacts, context: int, *, vram: int | None, ram: int, batch: int = 1, scope: str = "layer", staging: int = 1,
    prefill_rows: int | None = None, process_bytes: int = PROCESS_BYTES, cuda_bytes: int = CUDA_BYTES,
    more: Sequence[MemoryRow] = (),
) -> int:  # fmt: skip
    """Slots of each pool that remain once contexts have grown to `context`: the KV cache and the experts share one budget.
    Never more at a longer context; 0: nothing fits any more."""
    budget = _budget(
        facts, vram is not None, context, batch, scope, staging, prefill_rows, process_bytes, "", cuda_bytes, more
    )
    return budget.slots(ram if vram is None else vram)


class SlotRoom:
    """How many slots there is room for as contexts grow and caps change, of all pools together (a cap on device memory where
    there is a GPU, else on private memory). Arguments as those of `plan_memory`, and the same numbers."""

    def __init__(
        self, facts: ModelFacts, *, gpu: bool, batch: int = 1, scope: str = "layer", staging: int = 1,
        prefill_rows: int | None = None, process_bytes: int = PROCESS_BYTES, cuda_bytes: int = CUDA_BYTES,
        more: Sequence[MemoryRow] = (),
    ) -> None:  # fmt: skip
        self._budget = lambda context: _budget(
            facts, gpu, context, batch, scope, staging, prefill_rows, process_bytes, "", cuda_bytes, more
        )

    def smallest(self, context: int) -> int:
        """The smallest cap that serves such contexts."""
        budget = self._budget(context)
        return budget.smallest(budget.place)

    def rows(self, context: int, cap: int) -> int:
        """Slots of all pools, staging included, when contexts have `context` tokens; 0: the cap is too small. Never more at a
        longer context."""
        budget = self._budget(context)
        if cap < budget.smallest(budget.place):
            return 0
        return min(budget.pools * budget.keys, (cap - budget.taken(budget.place)) // budget.slot)


def readable(size: int) -> str:
    """Bytes for people: three digits and a binary unit."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"


def _budget(
    facts: ModelFacts, gpu: bool, context: int, batch: int, scope: str, staging: int, prefill_rows: int | None,
    process_bytes: int, process_source: str, cuda_bytes: int, more: Sequence[MemoryRow] = (),
) -> _Budget:  # fmt: skip
    for name, value, low in (("context", context, 1), ("batch", batch, 1), ("pool.staging", staging, 0),
                             ("prefill_rows", 1 if prefill_rows is None else prefill_rows, 1)):  # fmt: skip
        if value < low:
            raise InputError(f"{name}: got {value}; expected {low} or more; set {name}={low}")
    if facts.max_context and context > facts.max_context:
        raise InputError(
            f"context: got {context}; expected at most {facts.max_context}, which is all that {facts.name} can read; "
            f"set context={facts.max_context}"
        )
    placed = place_layers(scope, facts.layers, facts.experts)
    if staging + 1 > placed.keys:
        raise InputError(f"pool.staging: got {staging} for pools of {placed.keys} experts; expected less; set 1")
    place = "vram" if gpu else "ram"
    rows = batch * context if prefill_rows is None else min(prefill_rows, batch * context)
    fixed = [
        MemoryRow("process", process_bytes, "ram", process_source),
        MemoryRow("dense weights", facts.dense_bytes, place, f"all but routed experts, in {facts.dtype}"),
        MemoryRow("KV cache", facts.kv_bytes(context, batch, fixed=gpu), place, f"{batch} sequences of {context} tokens"),
        MemoryRow(
            "workspace", workspace_bytes(facts, context, batch, rows), place,
            f"estimate: activations of a pass of {rows} tokens, logits of {batch} rows, growth of the cache",
        ),
    ]  # fmt: skip
    if gpu:
        fixed.append(MemoryRow("CUDA context", cuda_bytes, "vram", CUDA_SOURCE))
    fixed += more
    # a tensor that changes its dtype is there twice; what is read later, cache and slots, is not there yet
    loading = 0 if gpu else process_bytes + facts.dense_bytes + max(facts.embedding_bytes, facts.head_bytes)
    loading += sum(row.bytes for row in more if row.where == place)
    return _Budget(tuple(fixed), place, placed.pools, placed.keys, facts.expert_stride, staging + 1, loading)
