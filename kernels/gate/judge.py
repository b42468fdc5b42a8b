"""What the gate asks of one compilation, and the row it leaves in the table."""

from rgpu.kernels.gate.shipped import Listed, Shipped
from rgpu.kernels.gate.table import Row
from rgpu.kernels.gate.targets import TARGETS

RISE = 1.05  # instructions per weight may rise by this factor over the table


def row_of(one: Listed, target: str, version: str, values: dict[str, object]) -> Row:
    """The row of a compilation from `measure.Measured` as a dict."""
    entry, m = one.entry, _numbers(values)
    lanes = TARGETS[target].lanes * entry.num_warps
    cost = m["instructions"] * lanes / (entry.weights * (m["unroll"] or 1)) if entry.weights else None
    simple = {key: value for key, value in entry.constants.items() if isinstance(value, int | float | str | None)}
    return Row(
        name=entry.name, target=target, triton=version, registers=int(m["registers"]), stack=int(m["stack"]),
        shared=int(m["shared"]), instructions=int(m["instructions"]), unroll=m["unroll"],
        per_weight=None if cost is None else round(cost, 3), matrix=str(values["matrix"]),
        vector_loads=_vector_loads(entry, target, m), source=one.source,
        options={"num_warps": entry.num_warps, "num_stages": entry.num_stages, **entry.options, **simple},
    )  # fmt: skip


def faults(one: Listed, row: Row, values: dict[str, object], recorded: Row | None) -> list[str]:
    """What is wrong with a compilation, a line each: spills, limits, what the entry wants, weights that do not add up,
    and a rise of instructions per weight over the recorded row."""
    entry, m, target = one.entry, _numbers(values), TARGETS[row.target]
    found = []
    if m["spills"] or row.stack:
        found.append(f"spills: {m['spills']:g} spilled, {row.stack} bytes of stack a lane")
    if target.backend == "cuda" and row.registers > entry.max_registers:
        found.append(f"{row.registers} registers a lane; allowed {entry.max_registers}")
    if row.shared > target.shared_bytes:
        found.append(f"{row.shared} bytes of shared memory; {row.target} has {target.shared_bytes}")
    if "vector_loads" in entry.wants and not row.vector_loads:
        found.append(f"weights are not loaded 128 bits at a time: {m['narrow']:g} narrower loads in the main loop")
    if "mma" in entry.wants and not row.matrix:
        found.append("no matrix instruction in the main loop")
    if "subnormals" in entry.wants and m["flushing"]:
        found.append(f"{m['flushing']:g} instructions of the main loop flush subnormals")
    if "rounded" in entry.wants and m["fused"]:
        found.append(f"{m['fused']:g} instructions of the main loop add products that were not rounded")
    expected = entry.bytes_a_lane(row.target)
    if expected and not values["marked"]:
        found.append("no load in the main loop comes from a line marked `# weights`: its unrolling cannot be told")
    elif expected and (row.unroll < 0.99 or abs(row.unroll - round(row.unroll)) > 0.01):
        found.append(
            f"a lane loads {m['weight_bytes']:g} bytes of weights in a pass of the main loop; expected a multiple of "
            f"{expected:g} from weights={entry.weights}, bits={entry.bits:g}"
        )
    if recorded is not None and recorded.per_weight and row.per_weight and row.per_weight > recorded.per_weight * RISE:
        found.append(f"{row.per_weight:.2f} instructions per weight; the table has {recorded.per_weight:.2f}")
    return found


def _vector_loads(entry: Shipped, target: str, m: dict[str, float]) -> bool:
    """Marked loads: all are 128 bits or more. Unmarked: such loads carry at least the bytes of one iteration's weights."""
    if m["marked"]:
        return m["narrow"] == 0
    return m["wide_bytes"] > 0 and m["wide_bytes"] >= entry.bytes_a_lane(target)


def _numbers(values: dict[str, object]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
