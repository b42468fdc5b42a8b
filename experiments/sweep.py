"""Replay a grid of policies and capacities over one trace into one parquet; a killed sweep continues where it stopped."""

import itertools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.experiments.command import command
from rgpu.experiments.inputs import open_trace, policy_named, scored_parts
from rgpu.experiments.study.allocating import Allocated
from rgpu.experiments.study.points import Point, point_rows, warm_rows
from rgpu.experiments.study.time_points import Clocks, check_clocks, time_sweep
from rgpu.experiments.study.timing import cost_for, profile_named
from rgpu.policies.policy import Policy
from rgpu.replay.engine import SharedEvents
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.warm import orders_of
from rgpu.results.derive import derive
from rgpu.results.gap_rows import gap_rows
from rgpu.results.pairs import pair_rows
from rgpu.results.provenance import config_hash, manifest, stamp, write_manifest
from rgpu.results.rows import Context, append, frame, read_arrow
from rgpu.traces.trace import Trace

KEEP = 2_000_000  # rows


def sweep(
    context: Context, scored: Trace, calibration: Trace | None, policies: dict[str, Policy], points: list[Point],
    settings: Any, parts: Path, workers: int,
) -> list[pa.Table]:  # fmt: skip
    """Rows of every point; each is kept under `parts` as soon as it is done and read back instead of run again."""

    shared = SharedEvents(scored)

    def one(point: Point) -> pa.Table:
        kept = parts / f"{point.policy}-{point.scope}-{point.slots}-{point.seed}.parquet"
        if kept.exists():
            return read_arrow(kept)
        rows = point_rows(context, scored, calibration, policies[point.policy], point, settings, shared)
        append(kept, rows)
        return rows

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        futures = [pool.submit(one, point) for point in points]
        try:
            for done in tqdm(as_completed(futures), total=len(futures), desc="sweep", unit="replay", disable=None):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def with_derived(tables: list[pa.Table], points: list[Point]) -> list[pa.Table]:
    """The rows with what follows from them: gaps closed, every pair's verdict, the decomposition of the gap.

    Capacity by capacity, and beyond `KEEP` rows of single sequences without those, so that memory stays small.
    """
    out: list[pa.Table] = []
    whole = sum(t.num_rows for t in tables) <= KEEP
    for cell in dict.fromkeys((p.scope, p.slots, p.seed) for p in points):
        own = pa.concat_tables([t for t, p in zip(tables, points, strict=True) if (p.scope, p.slots, p.seed) == cell])
        rows = frame(own)
        kept = own if whole else own.filter(pc.is_null(own["sequence"]))
        out += [kept, derive(rows), pair_rows(rows), gap_rows(rows)]
    return out


def points_of(grid: Any) -> list[Point]:
    """Every cell of the grid; a grid that is empty or holds something else than whole slots is an InputError."""
    for name in ("policy", "slots", "scope", "seed"):
        if not isinstance(grid[name], list) or not grid[name]:
            raise InputError(f"grid.{name}: got {grid[name]!r}; expected a list such as 'grid.slots=[4,8,16]'")
    if bad := [s for s in grid["slots"] if isinstance(s, bool) or not isinstance(s, int) or s < 1]:
        raise InputError(f"grid.slots: got {bad[0]!r}; expected whole numbers from 1")
    cells = itertools.product(grid["policy"], grid["scope"], grid["slots"], grid["seed"])
    return list(dict.fromkeys(Point(*cell) for cell in cells))


def clocks_of(cfg: DictConfig, scored: Trace) -> Clocks | None:
    """What to time the grid on; None for a grid without hardware."""
    for name in ("hardware", "miss"):
        if not OmegaConf.is_list(cfg.grid[name]):
            raise InputError(f"grid.{name}: got {cfg.grid[name]!r}; expected a list such as 'grid.{name}=[a,b]'")
    if not cfg.grid.hardware:
        return None
    if cfg.orders not in ("auto", 0):
        raise InputError(
            f"orders: got {cfg.orders} with grid.hardware, which times one run in trace order; expected auto or 0"
        )
    profiles = tuple(profile_named(str(name)) for name in cfg.grid.hardware)
    cost = cost_for(scored, None)
    facts = pass_facts(scored, cost.window)
    return check_clocks(Clocks(profiles, tuple(map(str, cfg.grid.miss)), cfg.overlap, cost, facts))


def grid_policy(name: str) -> Policy:
    """The policy of a grid's cell: "lru@marginal" is lru in pools that `conf/allocator/marginal.yaml` splits a budget over."""
    policy, _, allocator = name.partition("@")
    if not allocator:
        return policy_named(policy)
    return Allocated(policy_named(policy), built(compose(overrides=[f"+allocator={allocator}"]).allocator, "allocator"))


@command("sweep")
def run(cfg: DictConfig) -> dict[str, Any]:
    points = points_of(OmegaConf.to_container(cfg.grid))
    policies = {name: grid_policy(name) for name in dict.fromkeys(p.policy for p in points)}
    trace = open_trace(cfg.trace, hidden=any(p.traits.feature == "hidden" for p in policies.values()))
    needed = any(p.traits.calibration or isinstance(p, Allocated) for p in policies.values())
    calibration, scored, digest = scored_parts(trace, cfg.calibration.share, needed)
    out = Path(cfg.out)
    clocks = clocks_of(cfg, scored)
    settings = OmegaConf.create({**cfg.replay, **cfg.pool})
    identity = {
        "policies": {name: repr(policy) for name, policy in policies.items()},
        "expert_bytes": trace.header.expert_bytes,
        "commit": manifest({})["commit"],
        "trace": trace.header.checksum or trace.checksum(),
        "replay": dict(settings),
        "split": digest,
        "version": 1,
    }
    if clocks is not None:
        identity["clocks"] = clocks.identity(trace.header.top_k)
    parts = out.parent / f".{out.stem}-parts-{config_hash(identity)}"
    context = Context(
        experiment="capacity_sweep", trace=Path(cfg.trace.path).stem, model=trace.header.model,
        source=f"{trace.header.model}, {Path(cfg.trace.path).name}", trace_tokens=scored.tokens, provenance=stamp(identity),
    )  # fmt: skip
    common = (context, scored, calibration, policies, points, settings, parts, cfg.workers)
    orders = 0 if clocks is not None else orders_of(scored, cfg.orders, cfg.replay.reset)
    if clocks is not None:
        tables = time_sweep(replace(context, experiment="time_sweep"), *common[1:], clocks)
    else:
        tables = with_derived(warm_rows(*common, orders) if orders else sweep(*common), points)
    out.unlink(missing_ok=True)
    rows = append(out, tables)
    write_manifest(out.with_suffix(".manifest.json"), manifest(OmegaConf.to_container(cfg, resolve=True)))
    shutil.rmtree(parts, ignore_errors=True)
    return {
        "rows": str(out),
        "row_count": rows,
        "replays": len(points),
        "orders": orders,
        "timings": 0 if clocks is None else len(points) * len(clocks.pairs()),
        "tokens": scored.tokens,
        "split": digest,
    }


if __name__ == "__main__":
    run.main()
