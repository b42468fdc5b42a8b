"""The committed table: one row for each kernel, target and version of Triton, as JSON and as pages to read."""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rgpu.errors import InputError
from rgpu.kernels.gate.targets import TARGETS

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """`registers` a lane, `stack` bytes a lane, `shared` bytes a program; `instructions` of the main loop, of which one
    pass is `unroll` iterations as written (0: unknown); `per_weight`: instructions a lane issues for each weight (None:
    not counted); `matrix`: opcode of matrix units; `vector_loads`: whether weights come 128 bits at a time; `source`: see
    `shipped.source_hash`; `options` of the compiler."""

    name: str
    target: str
    triton: str
    registers: int
    stack: int
    shared: int
    instructions: int
    unroll: float
    per_weight: float | None
    matrix: str
    vector_loads: bool
    source: str
    options: dict[str, object]

    @property
    def key(self) -> Key:
        """What the row is about: (name, target, version of Triton)."""
        return self.name, self.target, self.triton


def read(path: Path) -> dict[Key, Row]:
    """The rows of a table; none where there is no file. Errors: `InputError` for a file that is no table."""
    if not path.exists():
        return {}
    try:
        rows = [Row(**values) for values in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: got no table ({error}); expected rows of the gate; run make kernels-gate full=1 update=1"
        ) from error
    return {row.key: row for row in rows}


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Rows by name, version and target, in the order of `TARGETS`."""
    places = {name: place for place, name in enumerate(TARGETS)}
    return sorted(rows, key=lambda row: (row.name, row.triton, places.get(row.target, len(places))))


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replaces the table, a row a line, and TABLE.md beside it."""
    rows = ordered(rows)
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    _replace(path, f"[\n{lines}\n]\n")
    _replace(path.with_name("TABLE.md"), page(rows))


def aligned(rows: Iterable[Row]) -> str:
    """The rows as text in columns."""
    head = ("kernel", "target", "triton", "regs", "shared", "loop", "unroll", "instr/weight", "matrix", "128-bit")
    cells = [head] + [
        (
            row.name, row.target, row.triton, str(row.registers), str(row.shared), str(row.instructions),
            f"{row.unroll:g}" if row.unroll else "?", "" if row.per_weight is None else f"{row.per_weight:.2f}",
            row.matrix, "yes" if row.vector_loads else "no",
        )
        for row in ordered(rows)
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(c, widths, strict=True)).rstrip() for c in cells
    )


def page(rows: Iterable[Row]) -> str:
    """The table as Markdown: a line for each kernel and version, a column for each target."""
    lines = [
        "# Kernels as compiled",
        "",
        "Written by `make kernels-gate full=1 update=1`; nothing here was run on a GPU. Each cell: instructions in the main "
        "loop per weight, registers a lane, KiB of shared memory.",
        "",
        "| kernel | triton | " + " | ".join(TARGETS) + " |",
        "|---|---|" + "---|" * len(TARGETS),
    ]
    of_kernel: dict[tuple[str, str], dict[str, Row]] = {}
    for row in ordered(rows):
        of_kernel.setdefault((row.name, row.triton), {})[row.target] = row
    for (name, version), by_target in of_kernel.items():
        cells = (_cell(by_target[target]) if target in by_target else "" for target in TARGETS)
        lines.append(f"| {name} | {version} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    cost = "-" if row.per_weight is None else f"{row.per_weight:.2f}"
    return f"{cost}, {row.registers}, {row.shared / 1024:.1f}"


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
