"""The process that compiles: one job a line of JSON on stdin, one answer a line on stdout.

`python -m rgpu.kernels.gate.worker ROOT`, started by `pool` with the Triton under test first on its path.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path


def serve(answer: Callable[[dict[str, object]], None], root: Path) -> None:
    """Answers until stdin ends; the first line says which Triton this is."""
    import triton

    from rgpu.errors import InputError
    from rgpu.kernels.gate.measure import measure
    from rgpu.kernels.gate.shipped import listed

    answer({"triton": triton.__version__})
    for line in sys.stdin:
        job = json.loads(line)
        try:
            entry = next((entry for entry in listed(job["where"]) if entry.name == job["name"]), None)
            if entry is None:
                raise InputError(f"{job['where']}: got no kernel {job['name']!r} under Triton {triton.__version__}")
            answer(asdict(measure(entry, job["target"], root, job["keep"])))
        except Exception as error:  # a compiler fails in every way there is; each is an answer
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            answer({"error": f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"})


def main() -> None:
    """Keeps stdout for the answers: whatever a compiler prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(what: dict[str, object]) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    serve(answer, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
