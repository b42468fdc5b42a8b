"""A gated recurrent unit over tokens that forecasts the whole stack of the next one.

Source: SeqMoE, next-token prediction of every layer's experts by a state-space model over routing history; the unit here
is the older GRU (Cho et al. 2014, arXiv 1406.1078), a recurrence that numpy repeats step by step. Kept: history in, the
whole stack of the next token out. Added: what this token has shown so far corrects the forecast (`history`).

Legend: U segments, T rows of a segment, C size of a token's vector, F size of the state, G = 3 F gates (reset, update, new).
"""

from collections.abc import Callable

import numpy as np
import torch

from rgpu.predictors.descent import Parameters, Schedule
from rgpu.predictors.hidden import FAR, ONE
from rgpu.predictors.history import Push
from rgpu.predictors.history_fit import TrainedHistory


class HistoryGru(TrainedHistory):
    """`inputs`: routing, hidden, tokens, or several joined by `+`. `size` of a token's vector and of the state; training
    runs through segments of `span` tokens from an empty state. The other parameters are those of `Schedule`, a unit of
    `batch` being a segment."""

    name = "history_gru"

    def __init__(
        self, inputs: str = "routing", size: int = 64, span: int = 64, horizon: int = 4, epochs: int = 60,
        batch: int = 2, lr: float = 0.005, decay: float = 0.1, optimiser: str = "adamw", validation: float = 0.15,
        patience: int = 8, seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.inputs, self.size, self.span = inputs, size, span
        self.schedule = Schedule(epochs, batch, lr, patience, seed, optimiser, decay, device)
        self.validation = validation
        self.needs = self._needs()

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._at_least_one("size", "span")

    def _state_size(self) -> int:
        return self.size

    def _window(self) -> tuple[int, bool]:
        return self.span, True

    def _own(self) -> list[str]:
        return ["in_CG", "back_FG", "in_bias_G", "back_bias_G"]

    def _start(self, generator: torch.Generator) -> Parameters:
        size = self.size
        maps = {n: torch.randn(size, 3 * size, generator=generator) / size**0.5 for n in ("in_CG", "back_FG")}
        return maps | {"in_bias_G": torch.zeros(3 * size), "back_bias_G": torch.zeros(3 * size)}

    def _states(
        self, parameters: Parameters, windows_UT: torch.Tensor, vectors_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The state before each row, [U, T, F]."""
        real_UT = windows_UT >= 0
        vector_BC = vectors_of(windows_UT[real_UT])
        gates_UTG = vector_BC.new_zeros(*windows_UT.shape, 3 * self.size)
        gates_UTG[real_UT.to(vector_BC.device)] = vector_BC @ parameters["in_CG"] + parameters["in_bias_G"]
        state_UF, states = vector_BC.new_zeros(len(windows_UT), self.size), []
        for gates_UG in gates_UTG.unbind(1):
            states.append(state_UF)
            back_UG = torch.addmm(parameters["back_bias_G"], state_UF, parameters["back_FG"])
            reset, update, new = gates_UG.chunk(3, 1)
            back_reset, back_update, back_new = back_UG.chunk(3, 1)
            keep = torch.sigmoid(update + back_update)
            fresh = torch.tanh(new + torch.sigmoid(reset + back_reset) * back_new)
            state_UF = (1 - keep) * fresh + keep * state_UF
        return torch.stack(states, 1)

    def _begin(self) -> Push:
        size, tensors = self.size, self.tensors_
        state_1F = np.zeros((1, size), np.float32)

        def push(vector_C: np.ndarray) -> np.ndarray:
            nonlocal state_1F
            gates_G = self.forward(vector_C[None], tensors["in_CG"], tensors["in_bias_G"])[0]
            back_G = self.forward(state_1F, tensors["back_FG"], tensors["back_bias_G"])[0]
            open_2F = gates_G[: 2 * size] + back_G[: 2 * size]
            open_2F = ONE / (ONE + np.exp(np.minimum(-open_2F, FAR)))
            fresh_F = np.tanh(gates_G[2 * size :] + open_2F[:size] * back_G[2 * size :])
            keep_F = open_2F[size:]
            state_1F = ((ONE - keep_F) * fresh_F + keep_F * state_1F[0])[None]
            return state_1F[0]

        return push
