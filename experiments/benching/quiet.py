"""Runs that other processes leave alone: what they use of the processor meanwhile is measured, and quiet is waited for."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

STAT = Path("/proc/stat")
JIFFY_S = 0.01
SAMPLE_S = 0.2
Run = TypeVar("Run")


def busy_seconds() -> tuple[float, float] | None:
    """(seconds that the cores of this machine were busy since it started, those of this process); None where nobody knows."""
    try:
        ticks = [int(v) for v in STAT.read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    used = resource.getrusage(resource.RUSAGE_SELF)
    return JIFFY_S * (sum(ticks[:8]) - ticks[3] - ticks[4]), used.ru_utime + used.ru_stime  # without idle and waiting


@dataclass(slots=True)
class Quiet:
    """`most` cores that others may use beside a run; `patience_s` seconds that waiting and running again may take in all.
    `others`: cores that others used beside each run that counted, in order."""

    most: float
    patience_s: float
    busy: Callable[[], tuple[float, float] | None] = busy_seconds
    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    others: list[float] = field(default_factory=list)

    def run(self, make: Callable[[], Run]) -> Run:
        """What `make` gives, made again while others disturb it and there is patience left."""
        while True:
            began_s = self.now()
            while self.patience_s > self.now() - began_s and self._beside(lambda: self.sleep(SAMPLE_S))[1] > self.most:
                pass
            waited_s = self.now() - began_s
            made, others = self._beside(make)
            again = others > self.most and self.patience_s > 0
            self.patience_s -= (self.now() - began_s) if again else max(0.0, waited_s - 2 * SAMPLE_S)
            if not again:
                self.others.append(others)
                return made

    def _beside(self, make: Callable[[], Run]) -> tuple[Run, float]:
        """(what `make` gives, cores that others used meanwhile)."""
        before, began_s = self.busy(), self.now()
        made = make()
        after, spent_s = self.busy(), self.now() - began_s
        if before is None or after is None or spent_s <= 0:
            return made, 0.0
        own = after[1] - before[1]
        return made, max(0.0, after[0] - before[0] - own) / spent_s
