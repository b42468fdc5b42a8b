"""Training of the predictors that keep a state: what `history` computes in numpy, here in torch, all rows of a batch at once.

Legend: B rows of a batch, U drawn units, T rows of a unit, L MoE layers, E experts, H forecast rows, D hidden size, C size
of a token's vector, F size of the state, M = H * E outputs, V token ids.
"""

from collections.abc import Callable

import numpy as np
import torch

from rgpu.predictors.descent import Parameters, whole
from rgpu.predictors.history import vocabulary_rows
from rgpu.predictors.popularity import popularity
from rgpu.predictors.training_rows import HiddenRows, Rows
from rgpu.predictors.training_scores import Batches, mean_recall, plackett_luce
from rgpu.traces.trace import Trace

States = Callable[[Parameters, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]


class HistoryProblem:
    """Units are windows of rows, int64 [U, T], -1 where there is none. `states(parameters, windows_UT, vectors_of)` gives
    the state before each of the last `speaks` rows of a window, [U, speaks, F]; those rows are what is learnt."""

    merge = staticmethod(whole)

    def __init__(
        self, key: str, trace: Trace, rows: Rows, parts: list[str], windows: tuple[torch.Tensor, torch.Tensor],
        speaks: int, states: States, device: str, fixed: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        self.key, self.rows, self.parts, self.states, self.speaks = key, rows, parts, states, speaks
        self._fit_UT, self._held_UT = windows
        self.units = torch.arange(len(self._fit_UT))
        self.device = torch.device(device)
        self._hidden: HiddenRows | None = None
        if "hidden" in parts:
            self._hidden = HiddenRows(trace.require("hidden", "history"), last=True)
        self._scaling = [torch.from_numpy(fixed[n]).to(self.device) for n in ("mean_D", "inverse_D") if n in fixed]
        if "tokens" in parts:
            tokens_N = vocabulary_rows(fixed["vocabulary_V"], trace.require("token_ids", "history"))
            self._token_N = torch.from_numpy(tokens_N.astype(np.int64))

    def to_cpu(self) -> None:
        """What is left to compute is computed where temperatures are."""
        self.device = torch.device("cpu")
        self._scaling = [part.cpu() for part in self._scaling]

    def shown(self, parameters: Parameters, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of rows up to each layer, [L, B, C], and the experts of each layer, [L, B, E]."""
        now_LBE = self.rows.members(rows_B).to(self.device)
        first_BC = parameters["bias_C"]
        if "tokens" in self.parts:
            first_BC = first_BC + parameters["token_VC"][self._token_N[rows_B].to(self.device)]
        if "routing" not in self.parts:
            return (first_BC + torch.zeros(len(now_LBE), len(rows_B), 1, device=self.device)), now_LBE
        return first_BC + torch.cumsum(now_LBE @ parameters["routed_LEC"], 0), now_LBE

    def vectors(self, parameters: Parameters, rows_B: torch.Tensor) -> torch.Tensor:
        """Whole vectors of rows, [B, C]."""
        total_BC = self.shown(parameters, rows_B)[0][-1]
        if self._hidden is None:
            return total_BC
        mean_D, inverse_D = self._scaling
        return total_BC + (self._hidden(rows_B)[0].to(self.device) - mean_D) * inverse_D @ parameters["hidden_DC"]

    def logits(self, parameters: Parameters, windows_UT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that speak [B] and their logits [L, B, H, E]."""
        speaking_US = windows_UT[:, -self.speaks :]
        real_US = speaking_US >= 0
        rows_B = speaking_US[real_US]
        states_USF = self.states(parameters, windows_UT, lambda rows: self.vectors(parameters, rows))
        state_BF = states_USF[real_US.to(self.device)]
        shown_LBC, now_LBE = self.shown(parameters, rows_B)
        layers, count, experts = self.rows.layers, self.rows.horizon + 1, self.rows.experts
        beside = torch.baddbmm(parameters["bias_L1M"], shown_LBC, parameters["shown_LCM"])
        beside = (beside + now_LBE @ parameters["now_LEM"]).view(layers, len(rows_B), count, experts)
        ahead_LBE, after_LBE = (
            (state_BF @ parameters[name]).view(len(rows_B), layers, experts).transpose(0, 1)
            for name in ("ahead_FX", "after_FX")
        )
        later = [  # the state's own word on the whole stack of this token, read from the layers ahead
            torch.cat([ahead_LBE[h + 1 :], torch.zeros_like(ahead_LBE[: h + 1])]) for h in range(self.rows.horizon)
        ]
        return rows_B, beside + torch.stack([*later, after_LBE], 2)

    def loss(self, parameters: Parameters, units_B: torch.Tensor) -> torch.Tensor:
        rows_B, logits = self.logits(parameters, self._fit_UT[units_B])
        ids, valid = self.rows.targets(rows_B)
        return plackett_luce(logits, ids.to(self.device), valid.to(self.device))

    @torch.no_grad()
    def held(self, parameters: Parameters) -> Batches:
        for windows_UT in self._held_UT.split(max(1, self.rows.together(0) // self.speaks)):
            yield self.logits(parameters, windows_UT)

    def score(self, parameters: Parameters) -> torch.Tensor:
        return mean_recall(self.held(parameters), self.rows).mean()[None]


def segments(rows: torch.Tensor, sequence_N: np.ndarray, span: int, most: int | None = None) -> torch.Tensor:
    """Rows cut into pieces of one sequence, int64 [U, span], -1 behind the last; at most about `most` rows, evenly."""
    of_rows = sequence_N[rows.numpy()]
    pieces = []
    for sequence in np.unique(of_rows):
        own = rows[torch.from_numpy(of_rows == sequence)]
        for piece in own.split(span):
            pieces.append(torch.nn.functional.pad(piece, (0, span - len(piece)), value=-1))
    return _thinned(torch.stack(pieces), None if most is None else max(1, most // span))


def trailing(rows: torch.Tensor, every: np.ndarray, sequence_N: np.ndarray, window: int) -> torch.Tensor:
    """For each row the `window` rows before it in its sequence and the row, int64 [U, window + 1], -1 where none was."""
    place_N = np.full(len(sequence_N), -1, np.int64)
    place_N[every] = np.arange(len(every))
    at_UT = torch.from_numpy(place_N)[rows][:, None] + torch.arange(-window, 1)
    inside = at_UT >= 0
    found = torch.from_numpy(every)[at_UT.clamp(min=0)]
    sequence = torch.from_numpy(sequence_N)
    return torch.where(inside & (sequence[found] == sequence[rows][:, None]), found, -1)


def _thinned(windows_UT: torch.Tensor, most: int | None) -> torch.Tensor:
    if most is None or len(windows_UT) <= most:
        return windows_UT
    return windows_UT[torch.linspace(0, len(windows_UT) - 1, most).long()]


def start_heads(
    trace: Trace, rows: Rows, parts: list[str], size: int, state: int, generator: torch.Generator, vocabulary: int
) -> Parameters:
    """Parameters of everything but the state: maps of the state are small, biases say popularity, the rest says nothing."""
    layers, experts, count = rows.layers, rows.experts, rows.horizon + 1
    outputs = count * experts
    popular_LE = torch.from_numpy(popularity(trace)).clamp(1e-3, 1 - 1e-3).logit()
    bias_LHE = torch.zeros(layers, count, experts)
    for layer in range(layers):
        for h in range(min(rows.horizon, layers - layer - 1)):
            bias_LHE[layer, h] = popular_LE[layer + h + 1]
        bias_LHE[layer, -1] = popular_LE[layer]

    def drawn(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    start = {
        "bias_C": torch.zeros(size),
        "ahead_FX": drawn(state, layers * experts, scale=0.1 * state**-0.5),
        "after_FX": drawn(state, layers * experts, scale=0.1 * state**-0.5),
        "shown_LCM": torch.zeros(layers, size, outputs),
        "now_LEM": torch.zeros(layers, experts, outputs),
        "bias_L1M": bias_LHE.reshape(layers, 1, -1),
    }
    if "routing" in parts:
        start["routed_LEC"] = drawn(layers, experts, size, scale=(layers * rows.top_k) ** -0.5)
    if "tokens" in parts:
        start["token_VC"] = drawn(vocabulary + 1, size, scale=0.1)
        start["token_VC"][-1] = 0
    if "hidden" in parts:
        dims = trace.require("hidden", "history").shape[2]
        start["hidden_DC"] = drawn(dims, size, scale=dims**-0.5)
    return start
