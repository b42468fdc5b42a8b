"""`make kernels-gate`: compiles what rgpu ships for GPUs on a machine without one, and compares with the committed table.

Only the kernels whose sources changed since the table was written, and the first configuration of each kernel; with
full=1 everything, with update=1 the table is written again. Exits 1 with a line for each failure, 2 for wrong arguments.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rgpu.errors import InputError
from rgpu.kernels.gate import table
from rgpu.kernels.gate.judge import faults, row_of
from rgpu.kernels.gate.pool import Answer, Job, compile_all
from rgpu.kernels.gate.shipped import Listed, collect, listing_modules
from rgpu.kernels.gate.table import Key, Row
from rgpu.kernels.gate.targets import VERSIONS

ALWAYS = ("sm90", "gfx942")  # compiled even if nothing changed: the first configuration of each kernel, for these


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments: `only` entries whose name contains it, `keep` listings in a folder, `timeout_s` of a compilation,
    `workers` at a time, `budget_s` for everything unless `full`."""

    full: bool = False
    update: bool = False
    only: str = ""
    keep: str = ""
    timeout_s: float = 30
    workers: int = 2
    budget_s: float = 225


@dataclass(frozen=True, slots=True)
class Outcome:
    """`rows` of what compiled and passed, `refused` rows of what compiled and did not, `failures` as lines, and how many
    compilations there were."""

    rows: dict[Key, Row]
    refused: list[Row]
    failures: list[str]
    compiled: int


def asked(arguments: Sequence[str]) -> Asked:
    """`key=value` arguments. Errors: `InputError` for others."""
    kinds = {field.name: type(getattr(Asked(), field.name)) for field in fields(Asked)}
    values: dict[str, object] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        try:
            kind = kinds[key]
            values[key] = value in ("1", "true", "yes") if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"kernels-gate: got {argument!r}; expected some of {', '.join(kinds)} as key=value"
            ) from error
    return Asked(**values)  # type: ignore[arg-type]


def planned(entries: Sequence[Listed], rows: dict[Key, Row], wish: Asked) -> list[Job]:
    """What to compile: the first configuration of each kernel first, then what the table does not hold as it is now."""
    firsts = {(one.entry.module, one.entry.kernel): one for one in reversed(entries)}
    urgent, others = [], []
    for one in entries:
        for version in VERSIONS:
            for target in one.entry.targets:
                row = rows.get((one.entry.name, target, version))
                job = Job(one.where, one.entry.name, target, version, wish.keep)
                first = firsts[one.entry.module, one.entry.kernel] is one
                if first and (target in ALWAYS or not set(ALWAYS) & set(one.entry.targets)):
                    urgent.append(job)
                elif wish.full or row is None or row.source != one.source:
                    others.append(job)
    return urgent + others


def judged(
    entries: Sequence[Listed], rows: dict[Key, Row], jobs: Sequence[Job], answers: dict[Job, Answer], update: bool
) -> Outcome:
    """Verdicts over all answers. Jobs without one, and rows of kernels that are not shipped, fail; the latter not where
    the table is about to be written. Neither does a rise over a row that is."""
    by_name = {one.entry.name: one for one in entries}
    passed: dict[Key, Row] = {}
    refused: list[Row] = []
    failures: list[str] = []
    for job in jobs:
        one, answer = by_name[job.name], answers.get(job)
        found = [answer.error] if answer is not None and answer.error else []
        if answer is None:
            found = ["not compiled in time, and the table holds it otherwise or not at all; run full=1 update=1"]
        elif not found:
            row = row_of(one, job.target, job.version, answer.values)
            found = faults(one, row, answer.values, None if update else rows.get(row.key))
            if found:
                refused.append(row)
            else:
                passed[row.key] = row
        failures += [f"FAILED {job.name} {job.target} triton {job.version}: {fault}" for fault in found]
    known = {
        (one.entry.name, target, version) for one in entries for target in one.entry.targets for version in VERSIONS
    }
    if not update:
        gone = sorted({key[0] for key in set(rows) - known})
        failures += [f"FAILED {name}: rows of it are in the table but it is not shipped; run update=1" for name in gone]
    return Outcome(passed, refused, failures, len(answers))


def updated(rows: dict[Key, Row], entries: Sequence[Listed], jobs: Sequence[Job], outcome: Outcome) -> dict[Key, Row]:
    """The table to write: what passed, and recorded rows of what was not compiled and is still shipped."""
    tried = {(job.name, job.target, job.version) for job in jobs}
    known = {
        (one.entry.name, target, version) for one in entries for target in one.entry.targets for version in VERSIONS
    }
    return {**{key: row for key, row in rows.items() if key in known - tried}, **outcome.rows}


def run(wish: Asked, modules: tuple[str, ...], root: Path, path: Path) -> Outcome:
    """One run of the gate over the entries that `modules` list, against the table at `path`."""
    entries = [one for one in collect(modules, root) if wish.only in one.entry.name]
    rows = {key: row for key, row in table.read(path).items() if wish.only in row.name}
    jobs = planned(entries, rows, wish)
    budget_s = float("inf") if wish.full else wish.budget_s
    answers = compile_all(jobs, root, timeout_s=wish.timeout_s, workers=wish.workers, budget_s=budget_s)
    outcome = judged(entries, rows, jobs, answers, wish.update)
    if wish.update:
        others = [row for row in table.read(path).values() if wish.only not in row.name]
        table.write(path, [*updated(rows, entries, jobs, outcome).values(), *others])
    return outcome


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    os.environ.pop("TRITON_INTERPRET", None)  # kernels made under it cannot be compiled
    began = time.monotonic()
    root = Path(__file__).resolve().parents[2]
    try:
        wish = asked(arguments)
        outcome = run(wish, listing_modules(root), root, Path(__file__).resolve().with_name("table.json"))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(table.aligned([*outcome.rows.values(), *outcome.refused]))
    for failure in outcome.failures:
        print(failure)
    seconds = round(time.monotonic() - began, 1)
    counts = {"compiled": outcome.compiled, "passed": len(outcome.rows), "failures": len(outcome.failures)}
    print(json.dumps({"gate": "kernels", **counts, "seconds": seconds}))
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
