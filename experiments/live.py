"""From a config to what decides in a live run: policy, predictor, calibration, hot profile."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.experiments.injected import placed
from rgpu.experiments.inputs import make_policy
from rgpu.policies.policy import Policy
from rgpu.predictors.base import BasePredictor, load_predictor
from rgpu.replay.controller import Controller
from rgpu.replay.features import available
from rgpu.replay.hot_start import load_profile
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.session import sample_event
from rgpu.traces.moe_layers import folder_revision
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape


@dataclass(frozen=True, slots=True)
class Setup:
    """What decides: `controller(shape, pool)` builds a new one each time; `hidden`: it reads the router's input. `logs`: it
    keeps every decision. `predictor_bytes`: what the fitted predictor holds."""

    policy: Policy
    predictor: str | None
    calibration: Trace | None
    hidden: bool
    logs: bool
    controller: Callable[[MoEShape, PoolConfig], Controller]
    predictor_bytes: int = 0

    @property
    def calibration_bytes(self) -> int:
        """Of the trace that is held for calibration."""
        arrays = [] if self.calibration is None else [getattr(self.calibration, f.name) for f in fields(Trace)]
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def set_up(cfg: DictConfig) -> Setup:
    """Policy, predictor and calibration of `cfg` (`conf/generate.yaml`), checked as far as they can be before a model
    is there."""
    policy = make_policy(cfg.policy, cfg.admission)
    if policy.traits.needs_future or policy.traits.bound:
        raise InputError(
            f"policy {policy.name}: got a policy that needs the future; expected one that can run live, such as lru"
        )
    saved = cfg.calibration.predictor
    chosen = cfg.get("predictor")
    if saved is not None and chosen is not None:
        raise InputError("got predictor and calibration.predictor; expected one of them; drop predictor=")
    fitted = (
        None if chosen is None else built(chosen, "predictor", **({"model": cfg.model} if "model" in chosen else {}))
    )
    learns = fitted is not None and fitted.learns
    calibration = _calibration(cfg) if policy.traits.calibration or learns else None
    if fitted is not None:
        fitted.fit(calibration if learns else None)
    if saved is not None:
        fitted = load_predictor(saved)
    feature = policy.traits.feature
    if feature and calibration is not None:
        feature = available(feature, calibration, policy.name)
    if fitted is not None and getattr(fitted, "clairvoyant", False):
        raise InputError(
            f"predictor {fitted.name}: got a predictor that reads the future; expected one that can run live, such as "
            "previous_token; score it on a trace with rgpu train"
        )
    placed(fitted, cfg.forecast, cfg.device, any(cfg.memory[name] is not None for name in ("vram", "ram")))
    hidden = feature == "hidden" or "hidden" in getattr(fitted, "needs", ())
    logs = bool(cfg.verify or cfg.profile_out is not None)
    profile = None if cfg.profile is None else Path(cfg.profile)
    if profile is not None and not profile.is_file():
        raise InputError(
            f"profile: got no file {profile}; expected a hot profile; make one with rgpu generate profile_out={profile.name}"
        )

    def controller(shape: MoEShape, pool: PoolConfig) -> Controller:
        if calibration is not None:
            _check_model(calibration, shape, cfg)
        if fitted is not None:
            fitted.check(shape).observe(sample_event(shape, hidden, "pre_attention" in getattr(fitted, "needs", ())))
            fitted.predict()  # compiles
            fitted.reset()
        planner = built(cfg.planner, "planner") if fitted is not None else None
        return Controller(
            policy, shape, pool, predictor=fitted, planner=planner, seed=cfg.seed, feature=feature,
            calibration=calibration if policy.traits.calibration else None, keep_log=logs,
            uses_LE=None if profile is None else load_profile(profile, shape),
        )  # fmt: skip

    name = None if fitted is None else str(fitted.name)
    held = fitted.held_bytes() if isinstance(fitted, BasePredictor) else 0
    return Setup(policy, name, calibration, hidden, logs, controller, held)


def _calibration(cfg: DictConfig) -> Trace:
    path = Path(cfg.calibration.trace)
    if not path.exists():
        raise InputError(
            f"calibration.trace: got no file {path}; expected a trace of the model; make one with "
            f"rgpu record model={cfg.model} out=trace.safetensors and set calibration.trace=trace.safetensors"
        )
    return load_trace(path)


def _check_model(trace: Trace, shape: MoEShape, cfg: DictConfig) -> None:
    """Refuses a calibration trace of another model: other shape, other width, or (where both are known) other weights."""
    width = trace.shape.hidden
    got = (trace.layers, trace.header.num_experts, trace.header.top_k, width or shape.hidden)
    expected = (shape.layers, shape.experts, shape.top_k, shape.hidden)
    remedy = f"record one with rgpu record model={cfg.model} and set calibration.trace"
    if got != expected:
        raise InputError(
            f"calibration.trace: got a trace of another model ({trace.header.model}: layers, experts, top-k, width {got}); "
            f"expected {expected}; {remedy}"
        )
    if trace.header.revision and trace.header.revision != folder_revision(Path(cfg.model)):
        raise InputError(
            f"calibration.trace: got a trace of other weights ({trace.header.model}, {trace.header.revision[:12]}); "
            f"expected one of {cfg.model}; {remedy}"
        )
