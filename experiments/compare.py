"""Your policy in one Python file against every other at equal bytes: verdicts, intervals, simulated time per token."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.command import command
from rgpu.experiments.inputs import make_policy, open_trace, scored_parts
from rgpu.experiments.mistakes import nearest
from rgpu.experiments.plot import render
from rgpu.experiments.study import comparing
from rgpu.experiments.study.compare_text import nested, printed
from rgpu.experiments.study.points import Point
from rgpu.hardware import profile_of
from rgpu.policies.plain import Plain
from rgpu.policies.policy import Policy
from rgpu.replay.compile_hooks import compiled_or_plain
from rgpu.replay.placement import place_layers
from rgpu.replay.pool import PoolConfig
from rgpu.replay.warm import orders_of
from rgpu.results.pairs import pair_rows
from rgpu.results.provenance import manifest, stamp, write_manifest
from rgpu.results.rows import Context, append, frame
from rgpu.traces.trace import Trace

FIRST = ("lru", "lfu", "fifo", "belady", "belady_bypass", "random", "static_hot", "on_demand")  # run before any other
METRICS = ("loads_per_token", "bytes_per_token", "hit_rate", "tpot")


def chosen(group: str, name: str) -> DictConfig:
    """`conf/<group>/<name>.yaml` from the job's search path; forty composed configs would take seconds."""
    if name not in choices(group):
        raise InputError(f"no {group}={name}; {nearest(name, choices(group))}")
    return GlobalHydra.instance().config_loader().repository.load_config(f"{group}/{name}").config  # type: ignore[attr-defined, no-any-return]


def choices(group: str) -> list[str]:
    """Names of a group of configs, a user's own folder included."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def contender(cfg: DictConfig) -> Policy:
    """The policy to compare, under a name of its own; InputError for one that could not run."""
    mine = make_policy(cfg)
    if mine.traits.needs_future or mine.traits.bound:
        raise InputError(
            f"policy {mine.name}: got one that knows the future or is a bound; expected a policy that could run, because "
            "verdicts are among those alone; remove needs_future and bound, or give another policy"
        )
    if isinstance(mine, Plain) and mine.name in choices("policy"):
        return replace(mine, called=f"{mine.name} (yours)")
    return mine


def baselines_of(cfg: DictConfig, mine: Policy) -> dict[str, Policy]:
    """Policies to compare with, the best known first; by default without those that are LRU where nothing is forecast."""
    names = list(cfg.baselines) if cfg.baselines is not None else [n for n in choices("policy") if n != "plain"]
    names.sort(key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))
    made = {name: make_policy(chosen("policy", name)) for name in names if name != mine.name}
    return {name: p for name, p in made.items() if cfg.baselines is not None or not p.traits.forecast}


def plain_of(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg)


def slots_of(cfg: DictConfig, trace: Trace) -> list[int]:
    keys = place_layers(cfg.pool.scope, trace.layers, trace.header.num_experts).keys
    if bad := [s for s in cfg.shares if isinstance(s, bool) or not isinstance(s, int | float) or not 0 < s <= 1]:
        raise InputError(f"shares: got {bad[0]!r}; expected shares of the experts such as 0.25")
    return sorted({max(1, round(s * keys)) for s in cfg.shares})


@command("compare")
def run(cfg: DictConfig) -> dict[str, Any]:
    """JSON: verdicts by slots, baseline and metric, how they were counted, what was left out and why."""
    begun = time.monotonic()
    mine = contender(cfg.policy)
    others = baselines_of(cfg, mine)
    trace = open_trace(cfg.trace, hidden=mine.traits.feature == "hidden")
    calibration, whole, digest = scored_parts(trace, cfg.calibration.share, True)
    if calibration is None:
        raise InputError(
            "calibration.share: got 0; expected a share of the documents above 0, because every policy is scored on the "
            "others; set calibration.share=0.5"
        )
    slots, settings = slots_of(cfg, trace), OmegaConf.create({**cfg.replay, **cfg.pool})
    orders = orders_of(whole, cfg.orders, cfg.replay.reset)
    pool = PoolConfig(cfg.pool.scope, slots=slots[len(slots) // 2], staging=cfg.pool.staging)
    tried = whole.select(np.arange(min(2, whole.sequences)))
    mine, how = compiled_or_plain(mine, tried, pool, calibration=calibration, seed=cfg.seed, reset=cfg.replay.reset)
    point = Point(mine.name, cfg.pool.scope, slots[len(slots) // 2], cfg.seed)
    speed = comparing.speed_of(mine, whole, calibration, point, settings)
    scored, slots = comparing.fitting(whole, speed, 0.5 * cfg.budget_s, slots, max(1, orders), cfg.seed)
    orders_OS = comparing.orders_for(scored, orders)
    profiles = [profile_of(plain_of(chosen("hardware", name))) for name in cfg.machines or []]
    costs = [plain_of(chosen("cost", name)) for name in choices("cost")] if profiles else []
    cost = comparing.cost_for(trace, costs) if profiles else None
    setup = comparing.Setup(scored, calibration, settings, orders_OS, profiles, cost, cfg.miss)
    context = Context(
        experiment="capacity_sweep", trace=Path(cfg.trace.path).stem, model=trace.header.model,
        source=f"{trace.header.model}, {Path(cfg.trace.path).name}", trace_tokens=scored.tokens,
        provenance=stamp(OmegaConf.to_container(cfg, resolve=True), seed=cfg.seed),
    )  # fmt: skip
    tables, left = comparing.all_rows(context, mine, others, slots, setup, cfg.seed, cfg.workers, begun + cfg.budget_s)
    compared = pair_rows(frame(pa.concat_tables(tables)), metrics=METRICS, against=mine.name, experiment="comparison")
    out = Path(cfg.out)
    rows = out / f"{mine.name.removesuffix(' (yours)')}.parquet"
    rows.unlink(missing_ok=True)
    append(rows, [*tables, compared])
    write_manifest(rows.with_suffix(".manifest.json"), manifest(OmegaConf.to_container(cfg, resolve=True)))
    index = render(frame(pa.concat_tables([*tables, compared])), out, ["comparison"])
    verdicts = compared.to_pandas()
    sys.stderr.write(printed(verdicts, mine.name))
    return {
        "policy": mine.name, "how": how, "accesses_per_s": speed, "tokens": scored.tokens,
        "sequences": scored.sequences, "of_sequences": whole.sequences, "slots": slots, "orders": orders, "split": digest,
        "cost": cost.name if cost else None, "verdicts": nested(verdicts),
        "summary": {m: part["verdict"].value_counts().to_dict() for m, part in verdicts.groupby("metric")},
        "left_out": left, "rows": str(rows), "figures": [str(out / f) for g in index["figures"] for f in g["files"]],
        "seconds": time.monotonic() - begun,
    }  # fmt: skip


if __name__ == "__main__":
    run.main()
