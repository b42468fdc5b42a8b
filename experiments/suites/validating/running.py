"""The live part of the validation: rounds in which every calibration and every validated configuration runs once."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.benching.calibrating import POLICIES, Calibration
from rgpu.experiments.benching.live_events import HANDLERS, Bench, Configuration, LiveRun, run_live
from rgpu.experiments.benching.quiet import Quiet


def validated(size: Any) -> list[Configuration]:
    """The grid of slots, policies, handlers and batches; what keeps nothing runs once, whatever the slots."""
    for handler in size.handlers:
        if handler not in HANDLERS:
            raise InputError(f"handlers: got {handler!r}; expected some of {', '.join(HANDLERS)}")
    found = []
    for batch in size.batches:
        for handler in size.handlers:
            for policy in size.policies:
                slots = list(size.slots)[:1] if policy == "on_demand" else list(size.slots)
                found += [Configuration(policy, int(n), handler, int(batch)) for n in slots]
    return found


def check_unseen(configurations: Iterable[Configuration], slots: Sequence[int]) -> None:
    """Refuses to validate what calibrates: neither a policy nor a number of slots may be of both."""
    for config in configurations:
        if config.policy in POLICIES or config.slots in slots:
            raise InputError(
                f"validation: got {config.name}; expected policies other than {', '.join(POLICIES)} and slots other than "
                f"{', '.join(map(str, slots))}, which calibrate; choose others"
            )


@dataclass(slots=True)
class Rounds:
    """Runs by configuration, and the load average before each round."""

    runs: dict[Configuration, list[LiveRun]] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)


def run_rounds(
    calibration: Calibration | None,
    bench: Bench,
    configurations: Sequence[Configuration],
    repeats: int,
    seed: int,
    quiet: Quiet,
) -> Rounds:
    """`repeats` rounds: calibration runs first, then the validated ones in an order of each round's own. The first run of a
    process is thrown away."""
    done, rng = Rounds(), np.random.default_rng(seed)
    run_live(bench, configurations[0])
    each = len(configurations) + (len(calibration.configurations()) if calibration else 0)
    with tqdm(total=repeats * each, unit="run", desc="live runs", disable=None) as bar:
        for _ in range(repeats):
            done.loads.append(round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else float("nan"))
            if calibration is not None:
                calibration.run_round()
                bar.update(len(calibration.configurations()))
            for at in rng.permutation(len(configurations)):
                config = configurations[int(at)]
                done.runs.setdefault(config, []).append(quiet.run(lambda: run_live(bench, config)))  # noqa: B023
                bar.update()
    return done
