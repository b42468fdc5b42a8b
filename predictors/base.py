"""What every predictor shares: parameters, forecast rows, and saving as safetensors + json (never pickle).

Legend: T rows of one event, N rows scored together, P passes of a trace, L MoE layers, E experts, H rows of a forecast,
D hidden size.
"""

import importlib
import inspect
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.predictors.files import read_header, read_tensors, stem_of, write_pair
from rgpu.predictors.ranges import check_seed
from rgpu.predictors.schema import Schema
from rgpu.traces.split import Split
from rgpu.traces.trace import DECODE, PADDING, SHARDED, Trace
from rgpu.types import MoEShape, RoutingEvent

FIRST = np.zeros(1, np.int64)
STATES = frozenset(SHARDED)  # arrays whose width is the hidden size


class BasePredictor:
    """Scikit-learn manners: `__init__` stores parameters, `fit` returns self, fitted state ends in an underscore.

    A forecast has one row for each of the next `horizon` MoE layers of this pass, as many as exist, then one row for
    the same layer in the next pass. What it is computed from, in an event of several rows, is `speaking_rows`.
    Subclasses give `name`, `_fit` and `_score`; fitted arrays live in `tensors_` by name. Those here also give
    `predict_trace(trace, layer, rows_P, first_P)` -> float32 [P, H, E]: bit for bit what observe and predict give at `layer`
    in the passes of a batch-1 trace, all at once, where `rows_P` int64 is the speaking row of each pass (its token in the
    trace) and `first_P` bool marks the first pass of a sequence, before which the predictor is reset. Without it the same
    numbers come event by event.
    """

    name = ""
    learns: bool = True  # False: `fit(None)` takes everything it needs from elsewhere, so no calibration trace
    needs: tuple[str, ...] = ()  # optional arrays of a trace without which neither fit nor predict works
    clairvoyant: bool = False  # True: reads what is still to come, so it is for replay alone

    def __init__(self, horizon: int = 4) -> None:
        self.horizon = horizon

    # -- fitting

    def fit(self, trace: Trace, split: Split | None = None, checkpoint: Path | None = None) -> Self:
        """Fit on the calibration sequences of `split`, or on the whole trace; `TraceError` where an array is missing.

        `checkpoint`: where a predictor that trains keeps its state, so that fitting again continues a killed training.
        """
        self._check_parameters()
        for array in self.needs:
            trace.require(array, f"predictor {self.name}")
        part = trace if split is None else trace.select(split.calibration)
        if not part.tokens:
            raise InputError(
                f"cannot fit {self.name}: got no calibration tokens; expected at least one; use more sequences"
            )
        digest = "" if split is None else split.digest
        self.schema_ = Schema.of(trace, part, hidden=not STATES.isdisjoint(self.needs), split_digest=digest)
        self.tensors_: dict[str, np.ndarray] = self._fit(part, checkpoint)
        self.reset()
        return self

    def _check_parameters(self) -> None:
        if self.horizon < 1:
            raise InputError(
                f"predictor {self.name}: got horizon {self.horizon}; expected 1 or more; set predictor.horizon"
            )
        check_seed(self.name, getattr(self, "seed", 0))

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        raise NotImplementedError

    # -- forecasting

    def reset(self) -> None:
        """Forget the sequence, keep what was fitted and what was derived from it."""
        self._layer = -1
        source = getattr(self, "tensors_", None), self.horizon
        last = getattr(self, "_source", ())
        if not last or last[0] is not source[0] or last[1] != source[1]:
            self._source = source
            self._renew()

    def _renew(self) -> None:
        """Drop what was derived from an earlier fit: called by the first `reset` after a fit or a load."""

    def observe(self, event: RoutingEvent) -> None:
        """Take note of one event; the next `predict` speaks from it."""
        self._fitted()
        if not 0 <= event.layer < self.schema_.layers:
            raise InputError(
                f"predictor {self.name}: got an event of MoE layer {event.layer}; expected one of the "
                f"{self.schema_.layers} of {self.schema_.model}; fit it on this model"
            )
        self._layer = event.layer

    def predict(self) -> Forecast:
        """The forecast after the last observed event: mean over its speaking rows, zero where it had none."""
        self._fitted()
        if self._layer < 0:
            raise InputError(f"predictor {self.name}: got predict() before any event; call observe(event) first")
        layers, ahead = self.targets(self._layer)
        probs_NHE = self._score(self._layer)
        if len(probs_NHE) == 1:
            return Forecast(
                layers, ahead, np.array(probs_NHE[0], np.float32)
            )  # a copy: what it comes from may be state
        total_HE = np.add.reduce(probs_NHE, axis=0, dtype=np.float32)
        return Forecast(layers, ahead, total_HE / np.float32(max(1, len(probs_NHE))))

    def targets(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """`layers` and `tokens_ahead` int64 [H] of a forecast made at `layer`; not to be written to."""
        return _targets(layer, self.horizon, self.schema_.layers)

    def work(self, layer: int) -> tuple[int, int] | None:
        """Bytes of state read and floating-point operations of one forecast at `layer` from one row; None: not counted."""
        return None

    def held_bytes(self) -> int:
        """Bytes that a fitted one holds while it runs: what was fitted, and what is derived from that and kept."""
        self._fitted()
        return sum(tensor.nbytes for tensor in self.tensors_.values()) + self._derived_bytes()

    def _derived_bytes(self) -> int:
        return 0

    def expected_bytes(self, shape: MoEShape) -> int | None:
        """`held_bytes` of one fitted on a model of that shape, before it is; None where text decides (tables of tokens,
        domains or sequences)."""
        return None

    def _score(self, layer: int) -> np.ndarray:
        """float32 [N, H, E] for the speaking rows of the last event."""
        raise NotImplementedError

    # -- saving

    def params(self) -> dict[str, Any]:
        """Constructor parameters by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def save(self, path: str | Path) -> Path:
        """Write `<path>.safetensors` and `<path>.json`, each replaced atomically; returns the first."""
        self._fitted()
        document = {
            "kind": self.name,
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "parameters": self.params(),
            "schema": asdict(self.schema_),
        }
        return write_pair(stem_of(path), self.tensors_, document)

    @classmethod
    def load(cls, path: str | Path, expect: Trace | MoEShape | None = None) -> Self:
        """The predictor that `save` wrote; with `expect`, `InputError` unless it fits that trace or shape."""
        stem = stem_of(path)
        document = read_header(stem)
        target = f"{cls.__module__}.{cls.__qualname__}"
        if document["kind"] != cls.name:
            raise InputError(
                f"{stem}.json holds a predictor {document['kind']!r}; expected {cls.name!r}; load it as {target}"
            )
        try:
            predictor = cls(**document["parameters"])
            predictor.schema_ = Schema(**document["schema"])
            predictor.tensors_ = read_tensors(stem, document)
            predictor.reset()
        except (OSError, SafetensorError, TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
            raise InputError(
                f"cannot read predictor {stem}: {error}; expected what rgpu train writes; train it again"
            ) from None
        if expect is not None:
            predictor.check(expect)
        return predictor

    def check(self, expect: Trace | MoEShape) -> Self:
        """`InputError` unless this predictor was fitted on that model: shape, and for a trace its revision or name."""
        self._fitted()
        wrong = self.schema_.differs(expect)
        if wrong:
            raise InputError(
                f"predictor {self.name} is of another model: got {', '.join(wrong)}; train one on this model"
            )
        return self

    def _fitted(self) -> None:
        if not hasattr(self, "schema_"):
            raise InputError(f"predictor {self.name} is not fitted: call fit(trace) or load(path) first")


def load_predictor(
    path: str | Path, target: type[BasePredictor] | None = None, expect: Trace | MoEShape | None = None
) -> Any:
    """The predictor saved at `path`, as `target` or else as the class its json names (importable, with `load`)."""
    if target is None:
        name = str(read_header(stem_of(path))["_target_"])
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError):
            found = None
        if not (isinstance(found, type) and hasattr(found, "load")):
            raise InputError(
                f"{stem_of(path)}.json names {name!r}; expected an importable class with load(); fix _target_"
            )
        return found.load(path, expect)
    return target.load(path, expect)


@lru_cache(maxsize=4096)
def _targets(layer: int, horizon: int, layers: int) -> tuple[np.ndarray, np.ndarray]:
    later = range(layer + 1, min(layer + 1 + horizon, layers))
    found = np.array([*later, layer], np.int64), np.array([0] * len(later) + [1], np.int64)
    for array in found:
        array.flags.writeable = False  # every forecast made at this layer holds it
    return found


def speaking_rows(phase_T: np.ndarray | None, rows: int) -> np.ndarray:
    """Indices of the rows a forecast is made from: every decode row; without one, the last row that is not padding.

    So a batch of decode steps is averaged and a prompt speaks through its last token, the one whose continuation comes
    next. An event without phases counts as a prompt; one of padding only has no speaking row.
    """
    if phase_T is None:
        return np.arange(rows)[-1:]
    if rows == 1:
        return FIRST if phase_T[0] != PADDING else FIRST[:0]
    decode = np.flatnonzero(phase_T == DECODE)
    return decode if len(decode) else np.flatnonzero(phase_T != PADDING)[-1:]
