"""Ensemble: other predictors' forecasts, weighed by how well they did on sequences that they were not fitted on.

Source: stacked generalisation (Wolpert 1992); weights and calibration are one logistic regression (Platt 1999) a forecast row.
Legend: P passes, L MoE layers, H rows of a forecast, E experts, M members.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.predictors.base import STATES, BasePredictor, speaking_rows
from rgpu.predictors.stacking import fit_logistic, held_out, log_odds, logistic, speaking_rows_of, targets_of
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape, RoutingEvent


class Ensemble(BasePredictor):
    """Log-odds of an expert: a weighted sum of the members' log-odds and a constant, for each layer and forecast row.

    `members`: predictors (a list of configs with `_target_`), which forecast at this one's `horizon`. They are fitted on the
    calibration sequences less `holdout` of the documents, weighed on these, then fitted again on all of them. Needs what
    its members need; files hold the members too. `curve_`: those of trained members one after the other, with `member`.
    """

    name = "ensemble"
    curve_: list[dict[str, Any]]

    def __init__(self, members: Sequence[Any], horizon: int = 4, holdout: float = 0.3, seed: int = 0) -> None:
        super().__init__(horizon)
        self.members: list[BasePredictor] = [_made(m) for m in members]
        self.holdout, self.seed = holdout, seed
        self.needs = tuple(sorted({array for member in self.members for array in member.needs}))

    def params(self) -> dict[str, Any]:
        described = [
            {"_target_": _target(m), "parameters": m.params() | {"horizon": self.horizon}} for m in self.members
        ]
        return {"members": described, "horizon": self.horizon, "holdout": self.holdout, "seed": self.seed}

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not self.members:
            raise InputError("predictor ensemble: got no members; expected one or more; set predictor.members")
        if not 0 < self.holdout < 1:
            raise InputError(
                f"predictor ensemble: got holdout {self.holdout}; expected a share between 0 and 1; set predictor.holdout"
            )
        for member in self.members:
            if member.clairvoyant:
                raise InputError(
                    f"predictor ensemble: got the member {member.name}, which reads the future; expected members that can "
                    "run live; leave it out"
                )

    # -- fitting

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        fitting, weighing = held_out(part, self.holdout, self.seed)
        for member in self.members:
            member.horizon = self.horizon
        states = self._fit_members(fitting, checkpoint, "weighed")
        layers, count = self.schema_.layers, len(self.members)
        members: list[Any] = self.members
        weight_LHM = np.zeros((layers, self.horizon + 1, count), np.float32)
        bias_LH = np.zeros((layers, self.horizon + 1), np.float32)
        rows_P, first_P = speaking_rows_of(weighing)
        for layer in range(layers):
            targets, ahead = self.targets(layer)
            odds = [log_odds(m.predict_trace(weighing, layer, rows_P, first_P)) for m in members]
            for h, target in enumerate(targets):
                passes, true_PE = targets_of(weighing, rows_P, first_P, int(target), bool(ahead[h]))
                x_MN = np.stack([odds_PHE[passes, h].ravel() for odds_PHE in odds])
                start_M = np.full(count, 1 / count)
                found = fit_logistic(x_MN, true_PE.ravel(), start_M) if len(passes) else np.append(start_M, 0.0)
                weight_LHM[layer, h], bias_LH[layer, h] = found[:-1], found[-1]
        tensors = {"weight_LHM": weight_LHM, "bias_LH": bias_LH}
        if fitting is not part:
            states += self._fit_members(part, checkpoint, "whole")
        self.curve_ = []
        for i, member in enumerate(self.members):
            tensors |= {f"{i}.{name}": tensor for name, tensor in member.tensors_.items()}
            self.curve_ += [{**row, "member": _whose(i, member, row)} for row in getattr(member, "curve_", ())]
        for state in states:
            state.unlink(missing_ok=True)
        return tensors

    def _fit_members(self, trace: Trace, checkpoint: Path | None, stage: str) -> list[Path]:
        """Fit all members; where their training states are, one a member and stage, which outlive a kill."""
        states = []
        for i, member in enumerate(self.members):
            state = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{stage}{i}")
            member.fit(trace, checkpoint=state)
            states += [] if state is None else [state]
        return states

    # -- forecasting

    def reset(self) -> None:
        super().reset()
        self._rows = 0
        for member in self.members:
            member.reset()

    def _renew(self) -> None:
        super()._renew()
        for i, member in enumerate(self.members if hasattr(self, "tensors_") else ()):
            own = f"{i}."
            member.horizon = self.horizon
            member.schema_ = replace(self.schema_, hidden=0 if STATES.isdisjoint(member.needs) else self.schema_.hidden)
            member.tensors_ = {n.removeprefix(own): t for n, t in self.tensors_.items() if n.startswith(own)}

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        self._rows = len(speaking_rows(event.phase_T, len(event.experts_TK)))
        for member in self.members:
            member.observe(event)

    def predict(self) -> Forecast:
        """Members' forecasts, each a mean over the speaking rows of a batch, together."""
        if not hasattr(self, "schema_") or self._layer < 0 or not self._rows:
            return super().predict()
        layers, ahead = self.targets(self._layer)
        return Forecast(layers, ahead, self._stacked(self._layer, [m.predict().probs_HE for m in self.members]))

    def _score(self, layer: int) -> np.ndarray:
        return np.zeros((0, len(self.targets(layer)[0]), self.schema_.experts), np.float32)  # no speaking row

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        members: list[Any] = self.members
        return self._stacked(layer, [m.predict_trace(trace, layer, rows_P, first_P) for m in members])

    def _stacked(self, layer: int, probs: list[np.ndarray]) -> np.ndarray:
        """float32 [..., H, E] of the members' chances, members added in their order."""
        rows = probs[0].shape[-2]
        weight_HM, bias_H = self.tensors_["weight_LHM"][layer, :rows], self.tensors_["bias_LH"][layer, :rows]
        z_HE = np.repeat(bias_H[:, None], self.schema_.experts, axis=1)
        for m, probs_HE in enumerate(probs):
            z_HE = z_HE + weight_HM[:, m, None] * log_odds(probs_HE)
        return logistic(z_HE)

    def _derived_bytes(self) -> int:
        return sum(member._derived_bytes() for member in self.members)

    def expected_bytes(self, shape: MoEShape) -> int | None:
        found = [member.expected_bytes(shape) for member in self.members]
        known = [size for size in found if size is not None]
        weights = 4 * shape.layers * (self.horizon + 1) * (len(found) + 1)
        return weights + sum(known) if len(known) == len(found) else None

    def work(self, layer: int) -> tuple[int, int] | None:
        """The members' together, and a product and a sum a member."""
        parts = [member.work(layer) for member in self.members]
        known = [p for p in parts if p is not None]
        outputs = len(self.targets(layer)[0]) * self.schema_.experts
        if len(known) < len(parts):
            return None
        return sum(p[0] for p in known), sum(p[1] for p in known) + 2 * len(parts) * outputs


def _whose(i: int, member: BasePredictor, row: dict[str, Any]) -> str:
    """Whose curve a row is of, members of members after their ensemble."""
    own = f"{i} {member.name}"
    return f"{own} / {row['member']}" if "member" in row else own


def _target(member: BasePredictor) -> str:
    return f"{type(member).__module__}.{type(member).__qualname__}"


def _made(member: Any) -> BasePredictor:
    """A predictor as it is, or made anew as `params` describes it."""
    if isinstance(member, BasePredictor):
        return member
    try:
        module, _, attribute = str(member["_target_"]).rpartition(".")
        kind = getattr(importlib.import_module(module), attribute)
        made = kind(**member["parameters"])
    except (ImportError, AttributeError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"predictor ensemble: got a member that cannot be made ({error}); expected a config with _target_ that names a "
            "predictor; fix predictor.members"
        ) from None
    if not isinstance(made, BasePredictor):
        raise InputError(f"predictor ensemble: got the member {attribute}; expected a predictor; fix predictor.members")
    return made
