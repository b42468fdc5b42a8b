"""`rgpu replay` with a predictor: what it loads ahead, and what became of that."""

import time
from typing import Any

import numpy as np
from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.policies.policy import Policy
from rgpu.predictors.base import load_predictor
from rgpu.replay.engine import ReplayResult
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prefetch_outcome import outcomes
from rgpu.replay.prefetching import NoPrefetch, RecordedForecasts, as_result, replay_prefetch
from rgpu.traces.split import held_apart, sharing
from rgpu.traces.trace import Trace, batched


def predictor_of(cfg: DictConfig) -> Any:
    """The predictor that `cfg` names, not fitted yet, or a saved one; None without."""
    chosen, saved = cfg.get("predictor"), cfg.calibration.predictor
    if saved is not None and chosen is not None:
        raise InputError("got predictor and calibration.predictor; expected one of them; drop predictor=")
    if saved is not None:
        return load_predictor(saved)
    return None if chosen is None else built(chosen, "predictor")


def unseen_by(predictor: Any, scored: Trace) -> Trace:
    """`scored` without what a saved predictor was fitted on, known again by documents and contents (`traces.split.origins`).

    `InputError` where nothing is left, and for a file that does not say what it was fitted on. One that learns nothing from a
    trace, or knows the future anyway, is replayed on everything.
    """
    if not getattr(predictor, "learns", True) or getattr(predictor, "clairvoyant", False):
        return scored
    known = set(getattr(predictor.schema_, "documents", ()))
    if not known:
        raise InputError(
            f"calibration.predictor: got a {predictor.name} that does not say which text it was fitted on; expected one that "
            "does; train it again with rgpu train"
        )
    fitted_S = sharing(scored, known)
    if fitted_S.all():
        raise InputError(
            f"calibration.predictor: got {scored.sequences} sequences that {predictor.name} was all fitted on; expected "
            "others; replay another trace, or train it on part of this one"
        )
    return scored.select(np.flatnonzero(~fitted_S)) if fitted_S.any() else scored


def must_fit(predictor: Any) -> bool:
    """Whether it learns from a calibration trace first."""
    return (
        predictor is not None and predictor.learns and not predictor.clairvoyant and not hasattr(predictor, "schema_")
    )


def prefetched(
    cfg: DictConfig, policy: Policy, pool: PoolConfig, predictor: Any, scored: Trace, calibration: Trace | None
) -> tuple[ReplayResult, dict[str, Any]]:
    """The replay with prefetch, and its section `prefetch`: how many loads ended how, and how many did harm.

    The shadow without prefetch is the same policy, with the same forecasts where it evicts by them.
    """
    if policy.traits.needs_future:
        raise InputError(
            f"policy {policy.name}: got a predictor beside a policy that knows the future; expected lru, say"
        )
    if not hasattr(predictor, "schema_"):
        predictor.fit(calibration if must_fit(predictor) else scored)
    predictor.check(scored)
    if calibration is not None:
        held_apart(calibration, scored, f"predictor {predictor.name}, policy {policy.name}")
    began = time.perf_counter()
    plain = cfg.speculative.width == 1 and not batched(scored) and hasattr(predictor, "predict_trace")
    source = RecordedForecasts(predictor, scored) if plain else predictor
    given = {
        "reset": cfg.replay.reset, "touch_order": cfg.replay.touch_order, "calibration": calibration, "seed": cfg.seed,
    }  # fmt: skip
    found = replay_prefetch(scored, policy, pool, source, lambda: built(cfg.planner, "planner"), **given)
    seconds = time.perf_counter() - began
    shadow = replay_prefetch(scored, policy, pool, source, NoPrefetch, **given)
    ended = outcomes(found.decisions, shadow.decisions)
    about = {"predictor": str(predictor.name), "planner": str(cfg.planner["_target_"]).split(".")[-2]}
    return as_result(found, scored, seconds), {"prefetch": about | ended.counts()}
