"""Trained probes of the router's input that are not one linear map: what they share.

A probe's logits are those of the target layer's router on this layer's input (gate look-ahead), where `model` gives the
routers, times a gain a forecast row, plus what is learnt. Learning starts from a learnt part of nothing, so a short trace
does no worse than gate look-ahead; inputs are scaled to unit variance a feature.

Legend: N rows, B rows of a batch, L MoE layers, H forecast rows a layer, D hidden size, E experts, M = H * E outputs.
"""

from pathlib import Path

import numpy as np
import torch

from rgpu.predictors.checkpoint_parts import routers_of
from rgpu.predictors.descent import Parameters, descend, whole
from rgpu.predictors.hidden import HiddenPredictor, threshold_chances
from rgpu.predictors.room import check_room, map_bytes
from rgpu.predictors.trained import Trained
from rgpu.predictors.training_rows import HiddenRows, Rows
from rgpu.predictors.training_scores import batches, mean_recall, plackett_luce, temperature
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape


class Probe(Trained, HiddenPredictor):
    """Two maps on scaled inputs. Subclasses give `_start(generator)`, `_learnt(parameters, x_LBD)` in torch and, for numpy,
    `_inner(layer)` and whether its units are `rectified`; `validation`, `schedule`, `model` are constructor parameters."""

    model: str | None
    rectified = True

    def _start(self, generator: torch.Generator) -> Parameters:
        """Parameters to learn, whose `_learnt` is 0."""
        raise NotImplementedError

    def _learnt(self, parameters: Parameters, x_LBD: torch.Tensor) -> torch.Tensor:
        """float32 [L, B, M]."""
        raise NotImplementedError

    def _inner(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """The first map of a layer, [D, F], and its bias."""
        raise NotImplementedError

    def _apply(self, layer: int, x_ND: np.ndarray, rows_H: list[int]) -> np.ndarray:
        """float32 [N, len(rows_H) * E]: `_learnt` of one layer's forecast rows, in a fixed order of sums."""
        units_NF = self.forward(x_ND, *self._inner(layer))
        units_NF = np.maximum(units_NF, np.float32(0)) if self.rectified else units_NF
        return self.forward(units_NF, *self._head(layer, rows_H))

    def work(self, layer: int) -> tuple[int, int] | None:
        """Every weight is read once, multiplied and added once."""
        maps = [*self._inner(layer), *self._head(layer, self._rows(layer))]
        maps += [] if self.model is None else self._cached_map(layer)
        size = sum(array.size for array in maps)
        return 4 * size, 2 * size

    def _rows(self, layer: int) -> list[int]:
        """Forecast rows made at a layer, of H; the last one is the next token's."""
        return [*range(len(self.targets(layer)[1]) - 1), self.horizon]

    def _head(self, layer: int, rows_H: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The last map of a layer's forecast rows, [F, len(rows_H) * E], and its bias, from `out_LFM`, `out_bias_L1M`."""
        if layer not in self._heads:
            experts = self.schema_.experts
            columns = np.concatenate([np.arange(h * experts, (h + 1) * experts) for h in rows_H])
            weight_FM = np.ascontiguousarray(self.tensors_["out_LFM"][layer][:, columns])
            self._heads[layer] = weight_FM, np.ascontiguousarray(self.tensors_["out_bias_L1M"][layer, 0, columns])
        return self._heads[layer]

    def _renew(self) -> None:
        super()._renew()
        self._heads: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._factors: dict[int, tuple[list[int], np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}

    def _empty_heads(self, width: int) -> Parameters:
        """`out_LFM` and `out_bias_L1M` of 0, [L, width, M] and [L, 1, M]."""
        layers, outputs = self.schema_.layers, (self.horizon + 1) * self.schema_.experts
        return {"out_LFM": torch.zeros(layers, width, outputs), "out_bias_L1M": torch.zeros(layers, 1, outputs)}

    def _parameters(self, shape: MoEShape) -> tuple[int, int]:
        """How many numbers `_start` learns, and the width of the last map."""
        raise NotImplementedError

    def expected_bytes(self, shape: MoEShape) -> int | None:
        learnt, width = self._parameters(shape)
        fixed = shape.layers * (2 * shape.hidden + self.horizon + 1)  # scaling of inputs and of logits
        if self.model is not None:
            fixed += shape.layers * (shape.experts * (shape.hidden + 1) + self.horizon + 1)
        return 4 * (learnt + fixed) + self._kept_maps(shape.layers, shape.experts, shape.hidden, width)

    def _derived_bytes(self) -> int:
        own = self.schema_
        return self._kept_maps(own.layers, own.experts, own.hidden, self.tensors_["out_LFM"].shape[1])

    def _kept_maps(self, layers: int, experts: int, hidden: int, width: int) -> int:
        """The last maps as they are applied, and those of the routers."""
        lookahead = 0 if self.model is None else map_bytes(layers, experts, self.horizon, hidden)
        return lookahead + map_bytes(layers, experts, self.horizon, width)

    def training_bytes(self, shape: MoEShape) -> int:
        """Private memory that training takes at its peak, batches aside: ten copies of what is learnt (gradient, moments, best
        and tried ones), the routers, and their map for every row of a forecast."""
        routers = 0 if self.model is None else shape.layers * shape.experts * shape.hidden
        return 4 * (10 * self._parameters(shape)[0] + routers * (1 + 2 * (self.horizon + 1)))

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        shape = part.shape
        smaller = [f"predictor.{size}" for size in ("width", "rank") if size in self.params()]
        check_room(
            self.name, self.training_bytes(shape),
            f"{shape.layers} layers of {shape.experts} experts, hidden size {shape.hidden} and horizon {self.horizon}",
            f"set a smaller {' or '.join(['predictor.horizon', *smaller])}, or predictor=history_gru, which reads none",
        )  # fmt: skip
        rows = Rows(part, self.horizon)
        fit, held = rows.parts(part, self.validation, self.schedule.seed)
        hidden = HiddenRows(part.require("hidden", f"predictor {self.name}"))
        tensors = scaling(hidden, fit)
        if self.model is not None:
            tensors["router_LED"], tensors["router_bias_LE"] = routers_of(self.model, self.schema_)
        step = rows.together(hidden.size)
        problem = _Problem(self, rows, hidden, fit, held, tensors)
        start = self._start(torch.Generator().manual_seed(self.schedule.seed))
        if self.model is not None:
            start["gain_LH"] = torch.ones(rows.layers, rows.horizon + 1)
            start["gain_LH"] = temperature(batches(lambda rows_B: problem.logits(start, rows_B), held, step), rows)
        problem.device = torch.device(self.schedule.device)
        best, self.curve_ = descend(self.name, start, problem, self.schedule, checkpoint)
        problem.device = torch.device("cpu")
        scale_LH = temperature(batches(lambda rows_B: problem.logits(best, rows_B), held, step), rows)
        tensors |= {name: tensor.contiguous().numpy() for name, tensor in best.items()}
        return tensors | {"scale_LH": scale_LH.numpy()}

    def _score_hidden(self, layer: int, hidden_ND: np.ndarray) -> np.ndarray:
        rows_H, mean_D, inverse_D, gain_M, scale_M = self._at(layer)
        hidden_ND = np.asarray(hidden_ND, np.float32)
        x_ND = hidden_ND - mean_D
        x_ND *= inverse_D
        logits_NM = self._apply(layer, x_ND, rows_H)
        if self.model is not None:
            lookahead_NM = self.forward(hidden_ND, *self._cached_map(layer))
            lookahead_NM *= gain_M
            logits_NM += lookahead_NM
        logits_NM *= scale_M
        return threshold_chances(logits_NM.reshape(len(x_ND), len(rows_H), self.schema_.experts), self.schema_.top_k)

    def _at(self, layer: int) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What a forecast of a layer is made with beside the maps, kept: its rows, scaling, gains and scales [M]."""
        found = self._factors.get(layer)
        if found is None:
            rows_H, experts = self._rows(layer), self.schema_.experts
            gain_LH = self.tensors_.get("gain_LH", np.ones_like(self.tensors_["scale_LH"]))
            gain_M, scale_M = (np.repeat(one[layer, rows_H], experts) for one in (gain_LH, self.tensors_["scale_LH"]))
            scaling = self.tensors_["mean_LD"][layer], self.tensors_["inverse_LD"][layer]
            found = self._factors[layer] = (rows_H, *scaling, gain_M, scale_M)
        return found

    def _map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        layers, _ = self.targets(layer)
        weight_MD = self.tensors_["router_LED"][layers].reshape(-1, self.schema_.hidden)
        return weight_MD.T, self.tensors_["router_bias_LE"][layers].ravel()


class _Problem:
    """A probe as something to descend on: one score over all forecast rows."""

    merge = staticmethod(whole)

    def __init__(
        self, probe: Probe, rows: Rows, hidden: HiddenRows, fit: torch.Tensor, held: torch.Tensor,
        tensors: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        self.probe, self.rows, self.hidden, self.units, self.held = probe, rows, hidden, fit, held
        self.device = torch.device("cpu")  # where temperatures are found; `_fit` descends elsewhere where asked
        self.key = rows.key(probe.name, probe.params(), [hidden], fit, held, *tensors.values())
        self._mean_L1D = torch.from_numpy(tensors["mean_LD"])[:, None]
        self._inverse_L1D = torch.from_numpy(tensors["inverse_LD"])[:, None]
        self._lookahead = _lookahead(tensors, rows) if "router_LED" in tensors else None

    def logits(self, parameters: Parameters, rows_B: torch.Tensor) -> torch.Tensor:
        hidden_LBD = self.hidden(rows_B).to(self.device)
        x_LBD = (hidden_LBD - self._mean_L1D.to(self.device)) * self._inverse_L1D.to(self.device)
        found = self.probe._learnt(parameters, x_LBD)
        if self._lookahead is not None:
            weight_LDM, bias_L1M = (part.to(self.device) for part in self._lookahead)
            gain_L1M = parameters["gain_LH"].repeat_interleave(self.rows.experts, 1)[:, None]
            found = found + gain_L1M * torch.baddbmm(bias_L1M, hidden_LBD, weight_LDM)
        return found.view(self.rows.layers, len(rows_B), self.rows.horizon + 1, self.rows.experts)

    def loss(self, parameters: Parameters, units_B: torch.Tensor) -> torch.Tensor:
        ids, valid = self.rows.targets(units_B)
        return plackett_luce(self.logits(parameters, units_B), ids.to(self.device), valid.to(self.device))

    def score(self, parameters: Parameters) -> torch.Tensor:
        with torch.no_grad():
            held = batches(
                lambda rows_B: self.logits(parameters, rows_B), self.held, self.rows.together(self.hidden.size)
            )
            return mean_recall(held, self.rows).mean()[None]


def scaling(hidden: HiddenRows, fit: torch.Tensor) -> dict[str, np.ndarray]:
    """`mean_LD` and `inverse_LD`, one over the standard deviation, of the inputs of the `fit` rows."""
    total, square = torch.zeros(2, hidden.layers, hidden.size, dtype=torch.float64)
    for _, x_LBD in hidden.chunks(fit):
        total += x_LBD.sum(1, dtype=torch.float64)
        square += x_LBD.double().square().sum(1)
    mean_LD = total / len(fit)
    variance_LD = (square / len(fit) - mean_LD**2).clamp(min=0)
    floor_L1 = 1e-4 * variance_LD.mean(1, keepdim=True) + 1e-12
    inverse_LD = (variance_LD + floor_L1).rsqrt()
    return {"mean_LD": mean_LD.float().numpy(), "inverse_LD": inverse_LD.float().numpy()}


def _lookahead(tensors: dict[str, np.ndarray], rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Routers of the target layers: weights float32 [L, D, M] and biases [L, 1, M]."""
    layers, experts, size = tensors["router_LED"].shape
    weight_LDHE = np.zeros((layers, size, rows.horizon + 1, experts), np.float32)
    bias_LHE = np.zeros((layers, rows.horizon + 1, experts), np.float32)
    for layer in range(layers):
        later = min(rows.horizon, layers - layer - 1)
        for h, target in [*((h, layer + h + 1) for h in range(later)), (rows.horizon, layer)]:
            weight_LDHE[layer, :, h] = tensors["router_LED"][target].T
            bias_LHE[layer, h] = tensors["router_bias_LE"][target]
    return torch.from_numpy(weight_LDHE.reshape(layers, size, -1)), torch.from_numpy(bias_LHE.reshape(layers, 1, -1))
