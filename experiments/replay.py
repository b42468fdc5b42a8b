"""Replay a trace through one policy and count hits, loads and bytes."""

import sys
from typing import Any

from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.experiments.command import command
from rgpu.experiments.inputs import allocated, make_policy, open_trace, pool_of, scored_parts
from rgpu.experiments.study.predicted_replay import must_fit, predictor_of, prefetched, unseen_by
from rgpu.experiments.study.timing import evaluated, plain, profile_named, time_section
from rgpu.hardware import HardwareProfile, profile_of
from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.replay.allocate import Uniform
from rgpu.replay.compile_hooks import check_decisions, written_by_user
from rgpu.replay.engine import ReplayResult, replay
from rgpu.replay.log_file import LogFile, save_log
from rgpu.replay.pool import PoolConfig
from rgpu.replay.resizing import Resizes
from rgpu.traces.trace import Trace


@command("replay")
def run(cfg: DictConfig) -> dict[str, Any]:
    policy = make_policy(cfg.policy, cfg.admission)
    predictor = predictor_of(cfg)
    needs = tuple(getattr(predictor, "needs", ()))
    trace = open_trace(cfg.trace, "hidden" in (policy.traits.feature, *needs), "pre_attention" in needs)
    if changes := Resizes.of(trace).left:
        sys.stderr.write(
            f"rgpu replay: the run that recorded this trace changed the size of its pools {len(changes)} times; here they "
            "keep theirs\n"
        )
    allocator = built(cfg.allocator, "allocator")
    needed = policy.traits.calibration or not isinstance(allocator, Uniform) or must_fit(predictor)
    calibration, scored, digest = scored_parts(trace, cfg.calibration.share, needed)
    whole = scored
    if cfg.calibration.predictor is not None:
        scored = unseen_by(predictor, whole)
    left_out = whole.sequences - scored.sequences
    profile = profile_of_run(cfg)
    scored, accepted = evaluated(scored, cfg.speculative, cfg.seed)
    pool = allocated(pool_of(cfg.pool, trace.shape), allocator, calibration, trace.shape)
    section: dict[str, Any] = {}
    if predictor is None:
        result = replay(
            scored,
            policy,
            pool,
            reset=cfg.replay.reset,
            touch_order=cfg.replay.touch_order,
            calibration=calibration,
            seed=cfg.seed,
            decisions=cfg.log is not None or profile is not None or written_by_user(policy) is not None,
        )
    else:
        result, section = prefetched(cfg, policy, pool, predictor, scored, calibration)
        section["prefetch"]["left_out"] = left_out
    check_decisions(policy, result)
    if cfg.log is not None:
        assert result.decisions is not None
        about = {
            "engine": "rgpu replay",
            "model": trace.header.model,
            "trace": trace.header.checksum,
            "reset": cfg.replay.reset,
        }
        claims = {"hits": result.hits, "loads": result.loads}
        claims |= {} if result.bytes_loaded is None else {"bytes_loaded": result.bytes_loaded}
        save_log(cfg.log, LogFile(result.decisions, trace.header.num_experts, claims=claims, about=about))
    section |= {"bounds": distances(result, scored, pool, cfg.replay.reset, cfg.replay.touch_order)}
    if profile is not None:
        assert result.decisions is not None
        section |= {"time": time_section(cfg, profile, result.decisions, scored, accepted, pool)}
    return (
        result.to_json()
        | {
            "reset": cfg.replay.reset,
            "slots_of_pools": pool.slots if isinstance(pool.slots, tuple) else None,
            "bound": policy.traits.bound and len(set(trace.header.expert_bytes)) <= 1,
            "model": trace.header.model,
            "tokens": scored.tokens,
            "sequences": scored.sequences,
            "calibration_sequences": calibration.sequences if calibration else 0,
            "split": digest,
        }
        | section
    )


def distances(result: ReplayResult, scored: Trace, pool: PoolConfig, reset: str, touch_order: str) -> dict[str, Any]:
    """How far a result is from both offline optima at the same device slots; for unequal sizes they are no bounds and null.

    `hits_below_belady` may be negative for a policy that loads unasked: Belady loads on demand only.
    """
    if len(set(scored.shape.expert_bytes)) > 1:
        return {"belady_hits": None, "hits_below_belady": None, "bypass_loads": None, "loads_above_bypass": None}
    forced, bypass = (replay(scored, p, pool, reset=reset, touch_order=touch_order) for p in (Belady(), BeladyBypass()))
    return {
        "belady_hits": forced.hits, "hits_below_belady": forced.hits - result.hits, "bypass_loads": bypass.demand_loads,
        "loads_above_bypass": result.loads - bypass.demand_loads,
    }  # fmt: skip


def profile_of_run(cfg: DictConfig) -> HardwareProfile | None:
    """The hardware that times the run, or None; settings of time without hardware are an InputError."""
    given = cfg.get("hardware")
    if given is not None and cfg.hardware_file is not None:
        raise InputError("hardware: got hardware and hardware_file; expected one of them")
    if given is None and cfg.hardware_file is None:
        if cfg.timeline is not None or cfg.ram.bytes is not None:
            raise InputError("timeline, ram: got no hardware; expected hardware=NAME, such as rtx4090")
        return None
    return profile_named(str(cfg.hardware_file)) if given is None else profile_of(plain(given))


if __name__ == "__main__":
    run.main()
