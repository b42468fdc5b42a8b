"""What every figure's computation is handed beside a subject: size of the run, provenance, and threads for replays."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rgpu.experiments.suites.published.subjects import Subject
from rgpu.results.rows import Context


@dataclass(frozen=True, slots=True)
class Bench:
    """`workers` 0: all cores. Replays release the interpreter's lock, so threads serve."""

    quick: bool = False
    seed: int = 0
    workers: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def context(self, subject: Subject, figure: str, **columns: Any) -> Context:
        return subject.context(figure, self.provenance, **columns)

    def map(self, function: Callable[..., Any], cases: Iterable[Any]) -> list[Any]:
        """`function` over cases, in order; the first error stops the rest."""
        with ThreadPoolExecutor(self.workers or os.cpu_count()) as pool:
            futures = [pool.submit(function, case) for case in cases]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
