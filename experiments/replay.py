"""Replay a trace through one policy and count hits, loads and bytes."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from rgpu.experiments.command import command
from rgpu.experiments.inputs import allocated, make_policy, open_trace, pool_of, scored_parts
from rgpu.replay.allocate import Uniform
from rgpu.replay.engine import replay
from rgpu.replay.log_file import LogFile, save_log


@command("replay")
def run(cfg: DictConfig) -> dict[str, Any]:
    policy = make_policy(cfg.policy, cfg.admission)
    trace = open_trace(cfg.trace, hidden=policy.traits.feature == "hidden")
    allocator = instantiate(cfg.allocator)
    needed = policy.traits.calibration or not isinstance(allocator, Uniform)
    calibration, scored, digest = scored_parts(trace, cfg.calibration.share, needed)
    pool = allocated(pool_of(cfg.pool, trace.shape), allocator, calibration, trace.shape)
    result = replay(
        scored,
        policy,
        pool,
        reset=cfg.replay.reset,
        touch_order=cfg.replay.touch_order,
        calibration=calibration,
        seed=cfg.seed,
        decisions=cfg.log is not None,
    )
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
    return result.to_json() | {
        "reset": cfg.replay.reset,
        "slots_of_pools": pool.slots if isinstance(pool.slots, tuple) else None,
        "bound": policy.traits.bound and len(set(trace.header.expert_bytes)) <= 1,
        "model": trace.header.model,
        "tokens": scored.tokens,
        "sequences": scored.sequences,
        "calibration_sequences": calibration.sequences if calibration else 0,
        "split": digest,
    }


if __name__ == "__main__":
    run.main()
