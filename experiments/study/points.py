"""Rows of one cell of a grid, cold or warm, and the counts of a warm grid. Legend: O orders, S sequences."""

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from rgpu.experiments.study.allocating import pool_at
from rgpu.policies.loop import COLD, DEMAND_LOADS, FILL_LOADS, HITS, LOADED_BYTES, PROACTIVE_LOADS
from rgpu.policies.policy import Policy
from rgpu.replay.compile_hooks import check_decisions, written_by_user
from rgpu.replay.engine import ReplayResult, SharedEvents, replay
from rgpu.replay.placement import place_layers
from rgpu.replay.warm import counts_by_sequence, sequence_orders
from rgpu.results.derive import kind_of
from rgpu.results.provenance import config_hash, write_atomic
from rgpu.results.rows import Context
from rgpu.traces.trace import Trace, batched, interleaved

EXTRAS = ("oversized_events", "accesses_per_s")


@dataclass(frozen=True, slots=True)
class Point:
    """One cell of the grid."""

    policy: str
    scope: str
    slots: int
    seed: int


def at_point(context: Context, scored: Trace, policy: Policy, point: Point, cfg: Any) -> Context:
    """The columns that place a cell."""
    experts = place_layers(point.scope, scored.layers, scored.header.num_experts).keys
    return context.at(
        policy=policy.name, kind=kind_of(policy.traits), scope=point.scope, slots=point.slots, reset=cfg.reset,
        staging=cfg.staging if policy.traits.staging and not policy.traits.bound else 0,
        capacity_share=point.slots / experts, seed=point.seed,
    )  # fmt: skip


def run_point(
    scored: Trace, calibration: Trace | None, policy: Policy, point: Point, cfg: Any, shared: SharedEvents, apart: bool,
    decisions: bool = False,
) -> ReplayResult:  # fmt: skip
    """One replay of a cell, each sequence counted `apart` if they do not mix; a user's policy is held to the rules."""
    pool = pool_at(policy, point.scope, point.slots, cfg.staging, calibration, scored)
    result = replay(
        scored, policy, pool, reset=cfg.reset, touch_order=cfg.touch_order, calibration=calibration, seed=point.seed,
        by_sequence=apart, shared=shared, decisions=decisions or written_by_user(policy) is not None,
    )  # fmt: skip
    check_decisions(policy, result)
    return result


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
    apart = cfg.reset != "batch" and not batched(scored) and not interleaved(scored)
    result = run_point(scored, calibration, policy, point, cfg, shared, apart)
    at = at_point(context, scored, policy, point, cfg)
    extras = {name: result.to_json()[name] for name in EXTRAS}
    if cfg.reset == "sequence":
        return counted_rows(at, result.pieces, np.diff(scored.seq_offsets), scored, policy, extras)
    n, d, w = result.hits, result.accesses, scored.tokens  # one warm order says nothing of its spread: no interval
    tables = [
        at.rows("hit_rate", "share", result.hit_rate, numerator=n, denominator=d),
        at.rows("loads_per_token", "loads/token", result.loads / w, numerator=result.loads, denominator=w),
        at.rows("cold_per_token", "loads/token", result.cold_misses / w, numerator=result.cold_misses, denominator=w),
    ]
    if (moved := result.bytes_loaded) is not None:
        tables.append(at.rows("bytes_per_token", "bytes/token", moved / w, numerator=moved, denominator=w))
    tables += [at.rows("cold_misses", "count", result.cold_misses)]
    return pa.concat_tables(tables + _extra_rows(at, extras))


def counted_rows(
    at: Context, counts: np.ndarray, tokens_S: np.ndarray, scored: Trace, policy: Policy, extras: dict[str, float]
) -> pa.Table:
    """Rows with intervals from the loop's counts of each sequence: int64 [S, COUNTS], or [O, S, COUNTS] of a warm run."""
    hits, misses = counts[..., HITS], counts[..., DEMAND_LOADS]
    loads = misses + counts[..., PROACTIVE_LOADS] + counts[..., FILL_LOADS]
    tokens = np.broadcast_to(tokens_S, hits.shape)
    sizes = scored.header.expert_bytes
    tables = [
        at.ratio("hit_rate", hits, hits + misses),
        at.ratio("loads_per_token", loads, tokens, unit="loads/token"),
        at.ratio("cold_per_token", counts[..., COLD], tokens, unit="loads/token", keep=policy.traits.bound),
    ]
    if sizes and all(sizes):  # with one size, bytes of a sequence are its loads times that size
        keep = len(set(sizes)) > 1
        tables.append(at.ratio("bytes_per_token", counts[..., LOADED_BYTES], tokens, unit="bytes/token", keep=keep))
    runs = counts.shape[0] if counts.ndim == 3 else 1
    tables.append(at.rows("cold_misses", "count", counts[..., COLD].sum() / runs))
    return pa.concat_tables(tables + _extra_rows(at, extras))


def _extra_rows(at: Context, extras: dict[str, float]) -> list[pa.Table]:
    units = {"oversized_events": "count", "accesses_per_s": "1/s"}
    return [at.rows(name, units[name], extras[name]) for name in EXTRAS]


def warm_rows(
    context: Context, scored: Trace, calibration: Trace | None, policies: dict[str, Policy], points: list[Point],
    settings: Any, parts: Path, workers: int, orders: int,
) -> list[pa.Table]:  # fmt: skip
    """Rows of every point over shared random orders. The counts of an order are kept under `parts` once it is done."""
    orders_OS = sequence_orders(scored.sequences, orders)
    grid = config_hash([repr(point) for point in points])
    counted: list[dict[str, np.ndarray]] = []
    with tqdm(total=orders * len(points), desc="sweep", unit="replay", disable=None) as bar:
        for number, order_S in enumerate(orders_OS):
            kept = parts / f"order-{number}-of-{orders}-{grid}.safetensors"
            found = _kept(kept)
            if found is None:
                trace = scored.select(order_S)
                found = _one_order(trace, order_S, calibration, policies, points, settings, workers, bar)
                write_atomic(kept, save(found))
            else:
                bar.update(len(points))
            counted.append(found)
    tokens_S = np.diff(scored.seq_offsets)
    tables = []
    for i, point in enumerate(points):
        policy = policies[point.policy]
        counts_OSC = np.stack([found["counts"][i] for found in counted])
        extras = {name: float(np.mean([found[name][i] for found in counted])) for name in EXTRAS}
        at = at_point(context, scored, policy, point, settings)
        tables.append(counted_rows(at, counts_OSC, tokens_S, scored, policy, extras))
    return tables


def _kept(path: Path) -> dict[str, np.ndarray] | None:
    """The counts of a finished order, or None."""
    try:
        return load(path.read_bytes())  # type: ignore[no-any-return]
    except (OSError, SafetensorError):
        return None


def _one_order(
    trace: Trace, order_S: np.ndarray, calibration: Trace | None, policies: dict[str, Policy], points: list[Point],
    settings: Any, workers: int, bar: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    shared = SharedEvents(trace)

    def one(point: Point) -> tuple[np.ndarray, dict[str, Any]]:
        result = run_point(trace, calibration, policies[point.policy], point, settings, shared, True)
        return counts_by_sequence(result, order_S), result.to_json()

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        futures = [pool.submit(one, point) for point in points]
        try:
            for done in as_completed(futures):
                done.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    done_points = [future.result() for future in futures]
    extras = {name: np.array([json[name] for _, json in done_points], np.float64) for name in EXTRAS}
    return {"counts": np.stack([counts for counts, _ in done_points])} | extras
