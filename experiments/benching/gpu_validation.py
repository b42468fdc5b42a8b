"""The virtual clock held against runs on a GPU: what is calibrated on few rows, and what it predicts of the others.

Three numbers are fitted for each model family, each to the median pass of one row: a layer's fixed cost (`launch_s`, for each
form of the dense part) to the row whose experts are all resident; what a layer's decision takes where they are not
(`sync_s`) to the LRU row with the largest pool below that; what a copy takes beside its bytes (`link_latency_s`) to the row on
demand. Rates of links and memory are measured elsewhere and not fitted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.experiments.benching.gpu_runs import GpuRun
from rgpu.replay.log import DecisionLog
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.simulate import simulate

LONGEST_S = 0.01  # no fixed cost is searched for above this
ROUNDS = 50  # of fitting the cost of a decision and that of a copy in turn
COLUMNS = (
    "model", "cap_gib", "policy", "handler", "fused", "batch", "slots", "role", "decisions_same", "hit_rate",
    "hit_rate_replayed", "misses_per_token", "misses_replayed", "measured_ms_p20", "measured_ms", "measured_ms_p80", "spread",
    "predicted_ms", "error", "without_misses_ms", "error_without_misses", "profile_misses_ms", "error_profile_misses",
    "profile_ms", "error_profile",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fitted:
    """Seconds. `launch_s` by whether the dense part is fused; `rows`: positions of the rows that they rest on."""

    launch_s: Mapping[bool, float]
    sync_s: float
    latency_s: float
    rows: tuple[int, ...]


def median_s(run: GpuRun, machine: Machine, log: DecisionLog | None = None) -> float:
    """Simulated median of the passes that the row counts. Decisions of a step whose experts are all resident are made in one
    call beside the device: there a layer waits for none."""
    if run.resident:
        machine = replace(machine, sync_s=0.0)
    timed = simulate(log or run.log, run.facts, machine, run.cost, run.top_k, miss=run.row["handler"])
    return float(np.median(timed.seconds_P[run.timed]))


def machine_for(run: GpuRun, rates: Machine, fitted: Fitted) -> Machine:
    """`rates` with what was fitted for the family of the run."""
    if run.fused not in fitted.launch_s:
        raise InputError(
            f"row {run.row['model']}: got fused={run.fused}; expected a resident row of that form to calibrate"
        )
    return replace(
        rates, launch_s=fitted.launch_s[run.fused], sync_s=fitted.sync_s, link_latency_s=fitted.latency_s
    )  # fmt: skip


def fitted_to(run: GpuRun, machine: Machine, cost: str) -> float:
    """The fixed cost from 0 (an attribute of `Machine`) with which the run takes what was measured, or comes nearest to it."""
    low, high = 0.0, LONGEST_S
    while high - low > 1e-10:
        middle = (low + high) / 2
        changed: dict[str, Any] = {cost: middle}
        over = median_s(run, replace(machine, **changed)) > run.measured_s
        low, high = (low, middle) if over else (middle, high)
    return low if low > 1e-9 else 0.0


def calibrate(runs: Sequence[GpuRun], rates: Machine, family: str) -> Fitted:
    """Costs of the model `family` from at most four rows of its own, one sequence and misses fetched."""
    own = [
        (i, r) for i, r in enumerate(runs)
        if r.row["model"] == family and r.row["handler"] == "fetch" and r.row["batch"] == "1"
    ]  # fmt: skip
    whole = {r.fused: i for i, r in reversed(own) if r.resident}
    few = [i for i, r in own if r.fused and not r.resident and r.row["policy"] == "lru"]
    bare = [i for i, r in own if r.fused and r.row["policy"] == "on_demand"]
    if True not in whole or not few or not bare:
        raise InputError(
            f"calibration of {family}: got rows that lack one of resident, LRU and on demand, fused and fetched; expected all "
            "three; run gpu_engine.py to its end"
        )
    at, demand = max(few, key=lambda i: float(runs[i].row["cap_gib"])), bare[0]
    launch = {fused: fitted_to(runs[i], rates, "launch_s") for fused, i in whole.items()}
    machine = replace(rates, launch_s=launch[True])
    for _ in range(ROUNDS):
        before = machine
        machine = replace(machine, sync_s=fitted_to(runs[at], machine, "sync_s"))
        machine = replace(machine, link_latency_s=fitted_to(runs[demand], machine, "link_latency_s"))
        moved = abs(machine.sync_s - before.sync_s) + abs(machine.link_latency_s - before.link_latency_s)
        if moved < 1e-9:
            break
    return Fitted(launch, machine.sync_s, machine.link_latency_s, tuple(sorted({*whole.values(), at, demand})))


def point(run: GpuRun, role: str, rates: Machine, profile: Machine, fitted: Fitted) -> dict[str, object]:
    """One row of the result: measured, predicted, the same with every miss left out, the same with misses as `profile` has them
    (launches calibrated), and all as `profile` has it."""
    machine = machine_for(run, rates, fitted)
    seconds = {
        "predicted": median_s(run, machine),
        "without_misses": median_s(run, machine, run.without_misses()),
        "profile_misses": median_s(run, replace(profile, launch_s=machine.launch_s)),
        "profile": median_s(run, profile),
    }
    row = run.row
    out: dict[str, object] = {
        name: row[name] for name in ("model", "cap_gib", "policy", "handler", "fused", "batch", "slots")
    }
    out |= {
        "role": role, "decisions_same": run.same, "hit_rate": row["hit_rate"], "hit_rate_replayed": run.hit_rate,
        "misses_per_token": row["misses_per_token"], "misses_replayed": run.misses, "measured_ms_p20": row["tpot_ms_p20"],
        "measured_ms": row["tpot_ms_p50"], "measured_ms_p80": row["tpot_ms_p80"], "spread": round(run.spread, 4),
    }  # fmt: skip
    for name, value_s in seconds.items():
        error = "error" if name == "predicted" else f"error_{name}"
        out |= {f"{name}_ms": round(1e3 * value_s, 3), error: round(value_s / run.measured_s - 1, 4) + 0.0}
    return out


def validate(
    runs: Sequence[GpuRun], rates: Machine, profile: Machine, families: Mapping[str, str]
) -> tuple[list[dict[str, object]], dict[str, Fitted]]:
    """(a row a run, what was fitted by family). `families`: whose calibration each model takes."""
    fitted = {name: calibrate(runs, rates, name) for name in sorted(set(families.values()))}
    used = {i for of in fitted.values() for i in of.rows}
    points = [
        point(run, "calibration" if i in used else "validation", rates, profile, fitted[families[run.row["model"]]])
        for i, run in enumerate(runs)
    ]
    return points, fitted


def rates_of(transfers: Sequence[Mapping[str, str]], memory_gb_per_s: float, flop_per_s: float) -> Machine:
    """Rates of the largest transfers of a benchmark (copies to the device, kernels that read host memory); no fixed costs."""
    rate = {}
    for way in ("memcpy_to_device", "gather_from_host"):
        rows = [row for row in transfers if row["way"] == way]
        if not rows:
            raise InputError(f"transfers: got no row of {way}; expected one; make them with make gpu")
        rate[way] = 1e9 * float(max(rows, key=lambda row: float(row["mib"]))["gb_per_s_p50"])
    return Machine(
        name="measured rates", bytes_per_s=1e9 * memory_gb_per_s, flop_per_s=flop_per_s,
        link_bytes_per_s=rate["memcpy_to_device"], zero_copy_bytes_per_s=rate["gather_from_host"],
    )  # fmt: skip
