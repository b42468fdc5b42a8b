"""Mutation testing of the decision loop and the policies: is every planted bug caught by some test?

    python -m tests.mutation.run                             # all of it (hours); stop and start again at will
    python -m tests.mutation.run modules=lru,loop sample=20  # some files, at most 20 mutants of each, drawn with a seed
    python -m tests.mutation.run budget_s=600                # stop after ten minutes

A first run of the tests on the unchanged files finds how long each takes and which functions it runs. A mutant is then given
the tests that run its function, the fastest first, until one fails. Results are kept line by line, so nothing is done twice for
the same file and mutant. Writes results/mutation/{mutants.jsonl,score.json}; survivors are listed by file and line.
Mutants known to change nothing are in equivalent.txt, each with the reason. Exits 1 if any other mutant that was run survived,
or is in a function that no test runs.
"""

import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.mutation.mutants import Mutant, mutants
from tests.mutation.sandbox import ROOT, in_child, run_tests

FOLDER = ROOT / "rgpu" / "policies"
OUT = ROOT / "results" / "mutation"
TESTS = [
    "tests/unit/policies", "tests/contracts/test_policies.py",
    *(f"tests/unit/replay/test_{n}.py" for n in ("brute_force", "properties", "log", "pool", "conformance_kit")),
]  # fmt: skip
SLOW_S = 30.0  # tests that take longer uncompiled and traced, or fail uncompiled, are left out and named
CHILD_S, BASE_S = 120, 3600  # processor seconds
FIRST = 25  # tests tried before the others
BATCHES = (FIRST, 100_000)


def baseline() -> dict[str, Any]:
    """Tests on the unchanged files: seconds, functions run, failures (left out, and named). Kept while nothing changes."""
    files = sorted([*FOLDER.rglob("*.py"), *(p for t in TESTS for p in ([ROOT / t] if t.endswith(".py") else
                    sorted((ROOT / t).glob("*.py")))), ROOT / "tests" / "support.py",
                    ROOT / "tests" / "user_policies.py"])  # fmt: skip
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:16]
    kept = OUT / f"baseline-{digest}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    out: dict[str, Any] = {"seconds": {}, "ran": {}, "modules": [], "left_out": []}
    for file in [p for p in files if p.name.startswith("test_")]:
        tell(f"running {file.name} on the unchanged files")
        nodes = ["-m", "not slow", str(file.relative_to(ROOT))]
        found = in_child(lambda: run_tests(nodes, trace=True, limit_s=SLOW_S), BASE_S)  # noqa: B023
        if "seconds" not in found:
            tell(f"left out: {file.name}: {found['failed']}")
            out["left_out"].append(str(file.relative_to(ROOT)))
            continue
        bad = set(found["failures"])
        out["left_out"] += sorted(bad)
        for node in (n for n in found["seconds"] if n not in bad):
            out["seconds"][node] = found["seconds"][node]
            ran = {f"{Path(f).relative_to(FOLDER)}:{name}" for f, name in found["ran"][node]}
            out["ran"][node] = sorted(ran)
        out["modules"] = sorted({*out["modules"], *found["modules"]})
    if not out["seconds"]:
        sys.exit("no test could be run on the unchanged files")
    OUT.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(out))
    return out


def equivalents() -> dict[tuple[str, str, str], str]:
    """{(file, line of code, change): reason}."""
    out = {}
    for line in (Path(__file__).parent / "equivalent.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            file, code, change, reason = (part.strip() for part in line.split(" | "))
            out[file, code, change] = reason
    return out


def verdict(file: Path, mutant: Mutant, base: dict[str, Any]) -> tuple[str, str]:
    """("killed" by which test, "survived", or "uncovered": no test runs the function)."""
    function = f"{file.relative_to(FOLDER)}:{mutant.function}"
    nodes = sorted((n for n, ran in base["ran"].items() if function in ran), key=lambda n: base["seconds"][n])
    if not nodes:
        return "uncovered", ""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    start = 0
    for size in BATCHES:
        part = nodes[start : start + size]
        start += size
        if part:
            run = lambda: run_tests(part, module=module, source=mutant.source, path=file)  # noqa: B023, E731
            if failed := in_child(run, CHILD_S)["failed"]:
                return "killed", failed
    return "survived", ""


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
    given = {"modules": "", "sample": "0", "seed": "0", "budget_s": "0"}
    for word in words:
        key, _, value = word.partition("=")
        if key not in given or not value:
            sys.exit(f"got {word!r}; expected some of {', '.join(f'{k}=...' for k in given)}")
        given[key] = value
    return given


def tell(line: str) -> None:
    sys.stderr.write(f"mutation: {line}\n")
    sys.stderr.flush()


def preload(names: list[str]) -> None:
    """Import what every child needs, once, outside rgpu."""
    import importlib

    for name in names:
        if "." not in name and name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: S112 - a child imports it itself, if it must
                continue


def main(words: list[str]) -> int:
    """0: every mutant that was run is killed or known to be equivalent; else 1."""
    given, begun = options(words), time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    base = baseline()
    preload(base["modules"])
    journal = OUT / "mutants.jsonl"
    done = {}
    for text in journal.read_text().splitlines() if journal.exists() else []:
        row = json.loads(text)
        done[row["file"], row["digest"], row["mutant"]] = row
    excused, rows, left = equivalents(), [], 0
    for file in chosen_files(given["modules"]):
        source = file.read_text()
        digest, name = hashlib.sha256(source.encode()).hexdigest()[:16], str(file.relative_to(ROOT))
        every = list(mutants(source))
        if 0 < int(given["sample"]) < len(every):
            every = random.Random(f"{given['seed']} {name}").sample(every, int(given["sample"]))
        for mutant in every:
            reason = excused.get((str(file.relative_to(FOLDER)), mutant.text, mutant.change))
            row = done.get((name, digest, mutant.name))
            if row is None and reason is None:
                if 0 < float(given["budget_s"]) < time.monotonic() - begun:
                    left += 1
                    continue
                result, by = verdict(file, mutant, base)
                row = {"file": name, "digest": digest, "mutant": mutant.name, "function": mutant.function,
                       "text": mutant.text, "result": result, "by": by}  # fmt: skip
                with journal.open("a") as out:
                    out.write(json.dumps(row) + "\n")
                if result != "killed":
                    tell(f"{result}: {name}:{mutant.line} {mutant.change}: {mutant.text}")
            elif row is None:
                row = {"file": name, "mutant": mutant.name, "function": mutant.function, "text": mutant.text,
                       "result": "equivalent", "by": reason}  # fmt: skip
            rows.append(row | {"result": "equivalent", "by": reason} if reason else row)
    score = summary(rows, left, base)
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
