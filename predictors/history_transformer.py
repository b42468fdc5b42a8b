"""A small causal transformer over the routing of the last tokens that forecasts the whole stack of the next one.

Sources: MoE-Beyond (arXiv 2508.17137) and ExpertFlow's routing path predictor (arXiv 2410.17954), transformers whose input
is tokens and layers and whose output is a logit an expert. Kept: causal attention over history, one output an expert. Not
kept: their sizes; an input a token and layer (here one a token, all its layers summed), and the whole context (here the
last `window` tokens, so that a forecast costs the same everywhere).

Legend: U units, T tokens of a window, Z blocks, A heads, C size of a token's vector and of the state, X = 3 C, Y = 2 C.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from rgpu.errors import InputError
from rgpu.predictors.descent import Parameters, Schedule
from rgpu.predictors.history import Push
from rgpu.predictors.history_fit import TrainedHistory

SMALL = np.float32(1e-5)


class HistoryTransformer(TrainedHistory):
    """`inputs`: routing, hidden, tokens, or several joined by `+`. `size` of a token's vector, `heads` of attention (they
    share it), `depth` blocks over the last `window` tokens. The other parameters are those of `Schedule`."""

    name = "history_transformer"

    def __init__(
        self, inputs: str = "routing", size: int = 32, heads: int = 2, depth: int = 2, window: int = 16,
        horizon: int = 4, epochs: int = 30, batch: int = 64, lr: float = 0.005, decay: float = 0.1,
        optimiser: str = "adamw", validation: float = 0.15, patience: int = 5, seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.inputs, self.size, self.heads, self.depth, self.window = inputs, size, heads, depth, window
        self.schedule = Schedule(epochs, batch, lr, patience, seed, optimiser, decay, device)
        self.validation = validation
        self.needs = self._needs()

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._at_least_one("size", "heads", "depth", "window")
        if self.size % self.heads:
            raise InputError(
                f"predictor {self.name}: got size {self.size} and {self.heads} heads; expected heads that share it; "
                "set predictor.heads"
            )

    def _state_size(self) -> int:
        return self.size

    def _window(self) -> tuple[int, bool]:
        return self.window, False

    def _own(self) -> list[str]:
        return ["qkv_ZCX", "mix_ZCC", "up_ZCY", "down_ZYC", "place_TC"]

    def _start(self, generator: torch.Generator) -> Parameters:
        size, depth = self.size, self.depth

        def drawn(*shape: int, scale: float) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) * scale

        return {
            "place_TC": drawn(self.window, size, scale=0.1),
            "qkv_ZCX": drawn(depth, size, 3 * size, scale=size**-0.5),
            "mix_ZCC": drawn(depth, size, size, scale=0.5 * size**-0.5),
            "up_ZCY": drawn(depth, size, 2 * size, scale=size**-0.5),
            "up_bias_ZY": torch.zeros(depth, 2 * size),
            "down_ZYC": drawn(depth, 2 * size, size, scale=0.5 * size**-0.5),
        }

    def _states(
        self, parameters: Parameters, windows_UT: torch.Tensor, vectors_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The state before each window's last row, [U, 1, C]; 0 where nothing came before."""
        past_UT = windows_UT[:, :-1]
        real_UT = past_UT >= 0
        rows, back = torch.unique(past_UT[real_UT], return_inverse=True)
        place_TC = parameters["place_TC"]
        here_UT = real_UT.to(place_TC.device)
        x_UTC = place_TC.new_zeros(*past_UT.shape, self.size)
        if len(rows):
            x_UTC[here_UT] = vectors_of(rows)[back.to(place_TC.device)]
        x_UTC = x_UTC + place_TC
        seen_TT = torch.ones(self.window, self.window, dtype=torch.bool, device=place_TC.device).tril()
        # a row that is not there sees itself, so that no softmax is over nothing
        allowed_UTT = (seen_TT & here_UT[:, None]) | torch.eye(self.window, dtype=torch.bool, device=place_TC.device)
        for z in range(self.depth):
            qkv = (_normed(x_UTC) @ parameters["qkv_ZCX"][z]).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            logits = qkv[0] @ qkv[1].transpose(2, 3) * (self.size // self.heads) ** -0.5
            share = logits.masked_fill(~allowed_UTT[:, None], -1e9).softmax(-1)
            x_UTC = x_UTC + (share @ qkv[2]).transpose(1, 2).flatten(2) @ parameters["mix_ZCC"][z]
            units = torch.relu(_normed(x_UTC) @ parameters["up_ZCY"][z] + parameters["up_bias_ZY"][z])
            x_UTC = x_UTC + units @ parameters["down_ZYC"][z]
        return (_normed(x_UTC[:, -1]) * here_UT[:, -1:])[:, None]

    def _begin(self) -> Push:
        past: deque[np.ndarray] = deque(maxlen=self.window)

        def push(vector_C: np.ndarray) -> np.ndarray:
            past.append(vector_C)
            return self._read(np.stack(past))

        return push

    def _read(self, x_TC: np.ndarray) -> np.ndarray:
        """The state after the last of up to `window` vectors, [C]: `_states` in numpy, every sum by `self.forward`."""
        tensors, rows, width = self.tensors_, len(x_TC), self.size // self.heads
        seen_TT = np.tri(rows, dtype=bool)
        x_TC = x_TC + tensors["place_TC"][-rows:]
        for z in range(self.depth):
            qkv_TX = self._times(self._even(x_TC), tensors["qkv_ZCX"][z])
            heads = []
            for head in range(self.heads):
                q_TD, k_TD, v_TD = (
                    np.ascontiguousarray(qkv_TX[:, at + head * width : at + (head + 1) * width])
                    for at in range(0, 3 * self.size, self.size)
                )
                logits_TT = self._times(q_TD, np.ascontiguousarray(k_TD.T)) * np.float32(width**-0.5)
                logits_TT = np.where(seen_TT, logits_TT, np.float32(-1e9))
                share_TT = np.exp(logits_TT - logits_TT.max(1, keepdims=True))
                share_TT /= self._times(share_TT, np.ones((rows, 2), np.float32))[:, :1]
                heads.append(self._times(share_TT, v_TD))
            x_TC = x_TC + self._times(np.concatenate(heads, 1), tensors["mix_ZCC"][z])
            units_TY = self.forward(self._even(x_TC), tensors["up_ZCY"][z], tensors["up_bias_ZY"][z])
            x_TC = x_TC + self._times(np.maximum(units_TY, np.float32(0)), tensors["down_ZYC"][z])
        state: np.ndarray = self._even(x_TC[-1:])[0]
        return state

    def _times(self, x_ND: np.ndarray, weight_DM: np.ndarray) -> np.ndarray:
        return self.forward(x_ND, weight_DM, np.zeros(weight_DM.shape[1], np.float32))

    def _even(self, x_NC: np.ndarray) -> np.ndarray:
        """Rows scaled to unit mean square."""
        mean_N2 = self._times(x_NC * x_NC, np.full((self.size, 2), 1 / self.size, np.float32))
        return x_NC / np.sqrt(mean_N2[:, :1] + SMALL)


def _normed(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + float(SMALL)).rsqrt()
