"""Mutation testing of the decision loop and the policies: is every planted bug caught by some test?

    python -m tests.mutation.run                             # all of it (hours); stop and start again at will
    python -m tests.mutation.run modules=lru,loop sample=20  # some files, at most 20 mutants of each, drawn with a seed
    python -m tests.mutation.run budget_s=600                # stop after ten minutes
    python -m tests.mutation.run again=1                     # try those that survived again, with new tests

A first run of the tests on the unchanged files finds how long each takes and which lines it runs. A mutant is then given the
tests that run its statement, first those that killed most mutants of the file and then the fastest, until one fails. Results
are kept line by line, so nothing is done twice for the same file and mutant; `again=1` tries those that survived again. Writes
results/mutation/{mutants.jsonl,score.json}; survivors are listed by file and line.
Mutants known to change nothing are in equivalent.txt, each with the reason. Exits 1 if any other mutant that was run survived,
or is in a function that no test runs.
"""

import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.mutation.mutants import Mutant, mutants
from tests.mutation.sandbox import ROOT, in_child, run_tests
from tests.mutation.server import Server

FOLDER = ROOT / "rgpu" / "policies"
OUT = ROOT / "results" / "mutation"
TESTS = [
    "tests/unit/policies", "tests/contracts/test_policies.py",
    *(f"tests/unit/replay/test_{n}.py" for n in ("brute_force", "properties", "log", "pool", "resizing", "conformance_kit")),
]  # fmt: skip
SLOW_S = 30.0  # tests that take longer uncompiled, or fail uncompiled, are left out and named
CHILD_S = 120  # processor seconds of a mutant whose tests have to be collected again
TOTAL_S = 30.0


class Bench:
    """The tests, run once on the unchanged files, and mutants tried with them."""

    def __init__(self) -> None:
        self.server = Server(TESTS, FOLDER, SLOW_S, tell)
        self.base = self.server.base
        for test in self.base["left_out"]:
            tell(f"left out: {test}")
        self.kills: Counter[tuple[Path, str]] = Counter()

    def verdict(self, file: Path, mutant: Mutant) -> tuple[str, str]:
        """("killed" by which test, "survived", or "uncovered": no test runs the statement)."""
        seconds, lines = self.base["seconds"], set(mutant.lines)
        again = bool(lines & set(self.base["collected"].get(str(file), ())))
        nodes = [n for n, ran in self.base["lines"].items() if lines & set(ran.get(str(file), ()))]
        nodes.sort(key=lambda n: (-self.kills[file, n], seconds[n]))
        took = accumulate(seconds[n] for n in nodes)
        nodes = [n for n, total in zip(nodes, took, strict=True) if total <= TOTAL_S]
        if not nodes and not again:
            return "uncovered", ""
        by = self.server.killed_by(file, mutant.source, nodes, int(10 * TOTAL_S))
        if by.startswith("crash") or (again and not by):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            by = in_child(lambda: run_tests(nodes or TESTS, module, mutant.source, file), CHILD_S)["failed"]
        if not by:
            return "survived", ""
        self.kills[file, by.removesuffix(" (timeout)")] += 1
        return "killed", by

    def close(self) -> None:
        self.server.close()


def equivalents() -> dict[tuple[str, str, str], str]:
    """{(file or file:function, line of code, change): reason}; a line of the file may name several changes."""
    out: dict[tuple[str, str, str], str] = {}
    for line in (Path(__file__).parent / "equivalent.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            file, code, change, reason = (part.strip() for part in line.split(" | "))
            out |= {(file, code, one): reason for one in change.split("; ")}
    return out


def chosen_files(names: str) -> list[Path]:
    files = sorted(p for p in FOLDER.rglob("*.py") if p.stem != "__init__")
    if not names:
        return files
    wanted = names.split(",")
    known = {str(p.relative_to(FOLDER).with_suffix("")): p for p in files}
    if unknown := [n for n in wanted if n not in known]:
        sys.exit(f"modules: got {unknown[0]}; expected some of {', '.join(known)}")
    return [known[n] for n in wanted]


def options(words: list[str]) -> dict[str, str]:
    given = {"modules": "", "sample": "0", "seed": "0", "budget_s": "0", "again": "0"}
    for word in words:
        key, _, value = word.partition("=")
        if key not in given or not value:
            sys.exit(f"got {word!r}; expected some of {', '.join(f'{k}=...' for k in given)}")
        given[key] = value
    return given


def tell(line: str) -> None:
    os.write(2, f"mutation: {line}\n".encode())


def main(words: list[str]) -> int:
    """0: every mutant that was run is killed or known to be equivalent; else 1."""
    given, begun = options(words), time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    bench = Bench()
    journal = OUT / "mutants.jsonl"
    done = {}
    for text in journal.read_text().splitlines() if journal.exists() else []:
        row = json.loads(text)
        if given["again"] == "1" and row["result"] != "killed":
            continue
        done[row["file"], row["digest"], row["mutant"]] = row
    excused, rows, left = equivalents(), [], 0
    for file in chosen_files(given["modules"]):
        source = file.read_text()
        digest, name = hashlib.sha256(source.encode()).hexdigest()[:16], str(file.relative_to(ROOT))
        every = list(mutants(source))
        if 0 < int(given["sample"]) < len(every):
            every = random.Random(f"{given['seed']} {name}").sample(every, int(given["sample"]))
        for mutant in every:
            short = str(file.relative_to(FOLDER))
            places = (short, f"{short}:{mutant.function}")
            reason = next((why for p in places if (why := excused.get((p, mutant.text, mutant.change)))), None)
            row = done.get((name, digest, mutant.name))
            if row is None and reason is None:
                if 0 < float(given["budget_s"]) < time.monotonic() - begun:
                    left += 1
                    continue
                at = time.monotonic()
                result, by = bench.verdict(file, mutant)
                row = {"file": name, "digest": digest, "mutant": mutant.name, "function": mutant.function,
                       "text": mutant.text, "result": result, "by": by, "seconds": round(time.monotonic() - at, 3)}  # fmt: skip
                with journal.open("a") as out:
                    out.write(json.dumps(row) + "\n")
                if result != "killed":
                    tell(f"{result}: {name}:{mutant.line} {mutant.change}: {mutant.text}")
            elif row is None:
                row = {"file": name, "mutant": mutant.name, "function": mutant.function, "text": mutant.text,
                       "result": "equivalent", "by": reason}  # fmt: skip
            alive = row["result"] != "killed"
            rows.append(row | {"result": "equivalent", "by": reason} if reason and alive else row)
    score = summary(rows, left, bench.base)
    bench.close()
    (OUT / "score.json").write_text(json.dumps(score, indent=1) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in score.items() if k not in ("survivors", "files")}) + "\n")
    for line in score["survivors"]:
        tell(f"alive: {line}")
    return 1 if score["survivors"] else 0


def summary(rows: list[dict[str, Any]], left: int, base: dict[str, Any]) -> dict[str, Any]:
    """Counts and the score: killed over all that are not equivalent."""
    count = {k: sum(r["result"] == k for r in rows) for k in ("killed", "survived", "uncovered", "equivalent")}
    tried = count["killed"] + count["survived"] + count["uncovered"]
    files: dict[str, list[int]] = {}
    for row in rows:
        if row["result"] != "equivalent":
            entry = files.setdefault(row["file"], [0, 0])
            entry[0] += row["result"] == "killed"
            entry[1] += 1
    alive = [f"{r['file']}:{r['mutant']} ({r['function']}): {r['text']} [{r['result']}]" for r in rows
             if r["result"] in ("survived", "uncovered")]  # fmt: skip
    return {
        "mutants": tried, **count, "not_yet_run": left, "score": count["killed"] / tried if tried else None,
        "tests": len(base["seconds"]), "tests_left_out": base["left_out"], "files": files, "survivors": alive,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
