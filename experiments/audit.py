"""Check an engine's decision log for legality, against a policy, and for the regret of its evictions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.command import command
from rgpu.experiments.inputs import make_policy
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.replay.audit import audit, decided_by, divergence, totals
from rgpu.replay.conformance.cases import compare, document
from rgpu.replay.flow_bound import bound_of
from rgpu.replay.log_file import LogFile, load_log
from rgpu.replay.regret import regret
from rgpu.results.provenance import write_atomic

BOUNDS = ("belady_bypass", "size_aware_farthest")  # logs of these spare no member and may stage without a slot
KIT = "conformance.json"


@command("audit")
def run(cfg: DictConfig) -> dict[str, Any]:
    """JSON: `legal`, `problem` (the first place where the log does not hold), counts, `divergence`, regret."""
    chosen = [name for name in ("log", "export", "results") if cfg[name] is not None]
    if len(chosen) != 1:
        raise InputError(
            f"audit: got {' and '.join(chosen) or 'nothing'}; expected one of: a log, export=DIR, results=FILE"
        )
    if cfg.export is not None:
        return export(Path(cfg.export))
    return check_results(Path(cfg.results)) if cfg.results is not None else check_log(cfg)


def export(folder: Path) -> dict[str, Any]:
    """Write the conformance kit."""
    kit = document()
    path = folder / KIT
    write_atomic(path, (json.dumps(kit, separators=(",", ":")) + "\n").encode())
    return {"kit": str(path), "cases": len(kit["cases"])}


def check_results(path: Path) -> dict[str, Any]:
    """Compare an engine's answers with the kit; a mismatch fails."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"results: cannot read {path} ({error}); expected JSON {{case: {{policy: answer}}}}") from None
    if not isinstance(given, dict):
        raise InputError(
            f"results: got {type(given).__name__}; expected {{case: {{policy: {{hits, loads, decisions}}}}}}"
        )
    checked, wrong = compare(given)
    if not checked:
        raise InputError(
            "results: got no answer to any case; expected hits, loads or decisions; see docs/decision_log.md"
        )
    return {"conforms": not wrong, "checked": checked, "mismatches": len(wrong), "first": wrong[:5]}


def check_log(cfg: DictConfig) -> dict[str, Any]:
    file = load_log(cfg.log)
    spared = file.log.policy not in BOUNDS
    found = audit(file, pins=spared)
    out: dict[str, Any] = {
        "log": str(cfg.log), "policy": file.log.policy, "legal": found.problem is None, **totals(found),
        "events": len(file.log.events.layer), "accesses": len(file.log.codes),
    }  # fmt: skip
    if found.problem is not None:
        return out
    out["bounds"] = bounds(file, cfg.flow_bound)
    if cfg.get("policy") is not None:
        policy = make_policy(cfg.policy)
        line = divergence(file, decided_by(file, policy, seed=cfg.seed))
        out |= {"against": policy.name, "agrees": line is None, "divergence": line}
    if cfg.regret:
        speed, latency = link_of(cfg)
        cost = regret(file, pins=spared, link_bytes_per_s=speed, latency_s=latency)
        out["regret"] = {
            "evictions": cost.evictions, "share_optimal": cost.share_optimal, "sooner_mean_events": cost.sooner_mean,
            "extra_loads": cost.extra_loads, "extra_bytes": cost.extra_bytes, "stall_s": cost.stall_s,
            "unresolved": cost.unresolved,
            "loads_per_eviction": cost.extra_loads / cost.evictions if cost.evictions else 0.0,
        }  # fmt: skip
    return out


def bounds(file: LogFile, flow: bool) -> dict[str, Any]:
    """Loads that no schedule of the log's events goes below in the same slots, staging included; and bytes, by the LP."""
    layout = file.log.layout
    whole = replace(layout, main=[s + layout.staging for s in layout.main], staging=0)
    log = replace(file.log, layout=whole)
    best = decided_by(replace(file, log=log), BeladyBypass())
    out: dict[str, Any] = {"fewest_loads": int((~best.hit).sum())}
    if flow:
        if not layout.size_of.all():
            raise InputError("flow_bound: got a log without expert sizes; expected expert_bytes in its header")
        sizes, slots = layout.size_of.astype(float), np.asarray(whole.main, float)
        found = bound_of(log.events, sizes, np.ones_like(sizes), slots, log.stretches)
        out |= {"fewest_bytes": found.bytes, "fewest_bytes_windowed": found.windowed}
    return out


def link_of(cfg: DictConfig) -> tuple[float, float]:
    """(bytes a second, seconds a copy) of the link; 0 bytes where none is given."""
    if cfg.link.gb_per_s is None:
        return 0.0, 0.0
    if not isinstance(cfg.link.gb_per_s, int | float) or cfg.link.gb_per_s <= 0:
        raise InputError(f"link.gb_per_s: got {cfg.link.gb_per_s!r}; expected a number above 0")
    return cfg.link.gb_per_s * 1e9, cfg.link.latency_us * 1e-6


if __name__ == "__main__":
    run.main()
