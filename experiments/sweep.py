"""Replay a grid of policies and capacities over one trace into one parquet; a killed sweep continues where it stopped."""

import itertools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.command import command
from rgpu.experiments.inputs import open_trace, policy_named, scored_parts
from rgpu.policies.policy import Policy
from rgpu.replay.engine import SharedEvents, replay
from rgpu.replay.placement import place_layers
from rgpu.replay.pool import PoolConfig
from rgpu.results.derive import kind_of
from rgpu.results.provenance import config_hash, manifest, stamp, write_manifest
from rgpu.results.rows import Context, append, read_arrow
from rgpu.traces.trace import Trace, batched, interleaved


@dataclass(frozen=True, slots=True)
class Point:
    """One cell of the grid."""

    policy: str
    scope: str
    slots: int
    seed: int


def point_rows(
    context: Context,
    scored: Trace,
    calibration: Trace | None,
    policy: Policy,
    point: Point,
    cfg: Any,
    shared: SharedEvents,
) -> pa.Table:
    """Rows of one replay: hit rate and loads, whole and (where sequences do not mix) one a sequence with intervals."""
    pool = PoolConfig(point.scope, slots=point.slots, staging=cfg.staging)
    apart = cfg.reset != "batch" and not batched(scored) and not interleaved(scored)
    result = replay(
        scored, policy, pool, reset=cfg.reset, touch_order=cfg.touch_order, calibration=calibration, seed=point.seed,
        by_sequence=apart, shared=shared,
    )  # fmt: skip
    experts = place_layers(point.scope, scored.layers, scored.header.num_experts).keys
    at = context.at(
        policy=policy.name, kind=kind_of(policy.traits), scope=point.scope, slots=point.slots, reset=cfg.reset,
        staging=cfg.staging if policy.traits.staging and not policy.traits.bound else 0,
        capacity_share=point.slots / experts, seed=point.seed,
    )  # fmt: skip
    tokens_S = np.diff(scored.seq_offsets) if apart else np.array([scored.tokens])
    hits_S, accesses_S, loads_S = result.hits_piece, result.accesses_piece, result.loads_piece
    tables: list[pa.Table] = []
    if cfg.reset == "sequence":
        tables += [
            at.ratio("hit_rate", hits_S, accesses_S),
            at.ratio("loads_per_token", loads_S, tokens_S, unit="loads/token"),
        ]
    else:  # one warm order says nothing of its spread: no interval
        n, d, w = result.hits, result.accesses, scored.tokens
        tables.append(at.rows("hit_rate", "share", result.hit_rate, numerator=n, denominator=d))
        tables.append(
            at.rows("loads_per_token", "loads/token", result.loads / w, numerator=result.loads, denominator=w)
        )
    if result.bytes_loaded is not None and cfg.reset == "sequence":
        tables.append(at.ratio("bytes_per_token", result.bytes_piece, tokens_S, unit="bytes/token", keep=False))
    elif result.bytes_loaded is not None:
        n, d = result.bytes_loaded, scored.tokens
        tables.append(at.rows("bytes_per_token", "bytes/token", n / d, numerator=n, denominator=d))
    tables += [
        at.rows("cold_misses", "count", result.cold_misses),
        at.rows("oversized_events", "count", result.oversized_events),
        at.rows("accesses_per_s", "1/s", result.accesses / max(result.seconds, 1e-9)),
    ]
    return pa.concat_tables(tables)


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


def points_of(grid: Any) -> list[Point]:
    """Every cell of the grid; a grid that is empty or holds something else than whole slots is an InputError."""
    for name in ("policy", "slots", "scope", "seed"):
        if not isinstance(grid[name], list) or not grid[name]:
            raise InputError(f"grid.{name}: got {grid[name]!r}; expected a list such as 'grid.slots=[4,8,16]'")
    if bad := [s for s in grid["slots"] if isinstance(s, bool) or not isinstance(s, int) or s < 1]:
        raise InputError(f"grid.slots: got {bad[0]!r}; expected whole numbers from 1")
    cells = itertools.product(grid["policy"], grid["scope"], grid["slots"], grid["seed"])
    return list(dict.fromkeys(Point(*cell) for cell in cells))


@command("sweep")
def run(cfg: DictConfig) -> dict[str, Any]:
    points = points_of(OmegaConf.to_container(cfg.grid))
    policies = {name: policy_named(name) for name in dict.fromkeys(p.policy for p in points)}
    trace = open_trace(cfg.trace, hidden=any(p.traits.feature == "hidden" for p in policies.values()))
    needed = any(p.traits.calibration for p in policies.values())
    calibration, scored, digest = scored_parts(trace, cfg.calibration.share, needed)
    out = Path(cfg.out)
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
    parts = out.parent / f".{out.stem}-parts-{config_hash(identity)}"
    context = Context(
        experiment="capacity_sweep", trace=Path(cfg.trace.path).stem, model=trace.header.model,
        source=f"{trace.header.model}, {Path(cfg.trace.path).name}", trace_tokens=scored.tokens, provenance=stamp(identity),
    )  # fmt: skip
    tables = sweep(context, scored, calibration, policies, points, settings, parts, cfg.workers)
    out.unlink(missing_ok=True)
    rows = append(out, tables)
    write_manifest(out.with_suffix(".manifest.json"), manifest(OmegaConf.to_container(cfg, resolve=True)))
    shutil.rmtree(parts, ignore_errors=True)
    return {"rows": str(out), "row_count": rows, "replays": len(points), "tokens": scored.tokens, "split": digest}


if __name__ == "__main__":
    run.main()
