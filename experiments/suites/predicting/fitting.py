"""Every predictor that has a config, fitted once on a text and scored once on another; what refuses says why."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

import rgpu.conf
from rgpu.errors import InputError
from rgpu.experiments.injected import with_kernel
from rgpu.experiments.suites.predicting.material import Material
from rgpu.predictors.base import load_predictor
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import Row, over_layers
from rgpu.results.rows import Context
from rgpu.traces.split import held_apart
from rgpu.traces.trace import Trace

FOLDER = Path(rgpu.conf.__file__).parent / "predictor"
HORIZON = 4
QUICK = {"epochs": 2, "trees": 6}  # of those that train


def names() -> list[str]:
    """Of every predictor with a config that does not see the future."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        target = str(OmegaConf.load(path)["_target_"])  # type: ignore[index]
        if not getattr(_class(target), "clairvoyant", False):
            found.append(path.stem)
    return found


def _class(target: str) -> Any:
    from hydra.utils import get_class

    return get_class(target)


@dataclass(slots=True)
class Bench:
    """Fits and scores, each once. `folder`: where fitted predictors are kept while the run lasts. `refused`: by material and
    predictor, why it could not be fitted or scored there."""

    folder: Path
    quick: bool = False
    names: Sequence[str] = field(default_factory=names)
    provenance: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    _fitted: dict[tuple[str, str], Any] = field(default_factory=dict)
    _rows: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    def made(self, name: str, model: str) -> Any:
        """An unfitted predictor of conf/predictor, told which model it is for."""
        cfg = OmegaConf.load(FOLDER / f"{name}.yaml")
        changed: dict[str, Any] = {"horizon": HORIZON} | {k: v for k, v in QUICK.items() if self.quick and k in cfg}
        if "model" in cfg:
            changed["model"] = model or None
        return with_kernel(instantiate(cfg, **changed))

    def fitted(self, name: str, material: Material, trace: Trace, label: str) -> Any:
        """Predictor `name` fitted on the whole of `trace`, which `label` names. Raises `InputError` where it refuses."""
        key = (name, f"{material.subject.name}-{label}")
        if key not in self._fitted:
            path = self.folder / f"{key[1]}-{name}"
            predictor = self.made(name, material.model)
            if path.with_name(path.name + ".json").exists():
                predictor = with_kernel(load_predictor(path, type(predictor)))
            else:
                predictor.fit(trace).save(path)
            self._fitted[key] = predictor
        return self._fitted[key]

    def usable(self, material: Material) -> list[str]:
        """Names of what can be fitted on the calibration half; the others are noted in `refused`."""
        own = self.refused.setdefault(material.subject.name, {})
        kept = []
        for name in self.names:
            try:
                self.scores(name, material)
            except InputError as error:
                own[name] = str(error)
            else:
                kept.append(name)
        return kept

    def scores(self, name: str, material: Material) -> list[Row]:
        """Rows of `evaluate` on the scored half, layer by layer, fitted on the calibration half."""
        key = (name, material.subject.name)
        if key not in self._rows:
            held_apart(material.subject.calibration, material.subject.scored, f"{name} on {material.subject.name}")
            predictor = self.fitted(name, material, material.subject.calibration, "calibration")
            self._rows[key] = evaluate(predictor, material.subject.scored, horizons=HORIZON)
        return self._rows[key]

    def pooled(self, name: str, material: Material) -> list[Row]:
        """`scores` over layers."""
        return over_layers(self.scores(name, material))

    def context(self, material: Material, figure: str, **columns: Any) -> Context:
        return material.subject.context(figure, self.provenance, method="trained", **columns)


def widths(trace: Trace) -> list[int]:
    """The numbers of experts named that every table has: K, K + 2, 2K, 3K, 4K."""
    top_k, experts = trace.header.top_k, trace.header.num_experts
    return sorted({w for w in (top_k, top_k + 2, 2 * top_k, 3 * top_k, 4 * top_k) if w <= experts})


def clusters(trace: Trace) -> np.ndarray:
    """Sequence number of every token."""
    return np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
