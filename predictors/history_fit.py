"""The fitting that predictors with a state share: everything around `history_training.HistoryProblem`.

Legend: U units, T rows of a unit, L MoE layers, H forecast rows, D hidden size, C size of a token's vector, F of the state.
"""

from pathlib import Path

import numpy as np
import torch

from rgpu.predictors.descent import Parameters, descend
from rgpu.predictors.history import History
from rgpu.predictors.history_training import HistoryProblem, States, segments, start_heads, trailing
from rgpu.predictors.probe import scaling
from rgpu.predictors.trained import Trained
from rgpu.predictors.training_rows import HELD, HiddenRows, Rows
from rgpu.predictors.training_scores import temperature
from rgpu.traces.trace import Trace


class TrainedHistory(Trained, History):
    """Subclasses give, beside `History`'s, `_start(generator)` (parameters of the state), `_states` in torch, `size` (C)
    and `_window()`: (rows of a unit, whether each speaks; else the last one only)."""

    size: int

    def _start(self, generator: torch.Generator) -> Parameters:
        raise NotImplementedError

    def _window(self) -> tuple[int, bool]:
        raise NotImplementedError

    _states: States

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        rows, seed = Rows(part, self.horizon), self.schedule.seed
        fit, held = rows.parts(part, self.validation, seed)
        fixed: dict[str, np.ndarray] = {}
        inputs: list[HiddenRows | np.ndarray] = []
        if "tokens" in self.parts:
            inputs.append(token_N := part.require("token_ids", f"predictor {self.name}"))
            fixed["vocabulary_V"] = np.unique(token_N[fit.numpy()])
        if "hidden" in self.parts:
            inputs.append(hidden := HiddenRows(part.require("hidden", f"predictor {self.name}"), last=True))
            last = scaling(hidden, fit)
            fixed["mean_D"], fixed["inverse_D"] = last["mean_LD"][0], last["inverse_LD"][0]
        span, all_speak = self._window()
        if all_speak:
            windows = segments(fit, rows.sequence_N, span), segments(held, rows.sequence_N, span, HELD)
        else:
            windows = tuple(trailing(r, rows.real, rows.sequence_N, span) for r in (fit, held))  # type: ignore[assignment]
        key = rows.key(self.name, self.params(), inputs, fit, held)
        problem = HistoryProblem(
            key, part, rows, self.parts, windows, span if all_speak else 1, self._states, self.schedule.device,
            fixed,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        start = self._start(generator)
        vocabulary = len(fixed.get("vocabulary_V", ()))
        start |= start_heads(part, rows, self.parts, self.size, self._state_size(), generator, vocabulary)
        best, self.curve_ = descend(self.name, start, problem, self.schedule, checkpoint)
        problem.to_cpu()
        scale_LH = temperature(problem.held(best), rows)
        tensors = {name: tensor.contiguous().numpy() for name, tensor in best.items()}
        return tensors | fixed | {"scale_LH": scale_LH.numpy()}

    def work(self, layer: int) -> tuple[int, int] | None:
        """The head is read once; of the token tables K rows; a layer's share of what a token adds to the state."""
        weight_XM, bias_M = self._head(layer)
        own = self._own()
        shared = sum(self.tensors_[name].size for name in own) // self.schema_.layers
        size = weight_XM.size + bias_M.size + self.schema_.top_k * self.size + shared
        return 4 * size, 2 * size

    def _own(self) -> list[str]:
        """Names of the tensors of the state."""
        raise NotImplementedError
