"""What the training of the linear probe works on: pairs of rows, whitened inputs, logits and recall of all maps at once.

Legend: N training rows, B rows of a batch, L MoE layers, H forecast rows a layer (1..horizon layers ahead, then the
next token), D hidden size, E experts, K top-k.
"""

import numpy as np
import torch

from rgpu.traces.trace import PADDING, Trace

FLOOR = 1e-4  # of the mean variance: keeps whitening finite along directions without variance


class Rows:
    """Rows of a trace as training pairs: input (row, layer), target experts `h + 1` layers or one token later."""

    def __init__(self, trace: Trace, horizon: int) -> None:
        self.horizon, self.layers, self.top_k = horizon, trace.layers, trace.header.top_k
        self.experts, self.missing = trace.header.num_experts, trace.missing
        self.ids_LNK = torch.from_numpy(trace.expert_ids.astype(np.int64)).transpose(0, 1).contiguous()
        sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
        real_N = np.ones(trace.tokens, bool) if trace.phase is None else trace.phase != PADDING
        follows = np.zeros(trace.tokens, bool)
        follows[:-1] = (sequence_N[1:] == sequence_N[:-1]) & real_N[1:]
        self.next_N = torch.from_numpy(np.where(follows, np.arange(trace.tokens) + 1, -1))
        self.real, self.sequence_N = np.flatnonzero(real_N), sequence_N

    def targets(self, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts int64 [L, B, H, K] in rank order and bool [L, B, H]: whether that target exists and was recorded."""
        ids = torch.full((self.layers, len(rows_B), self.horizon + 1, self.top_k), self.missing, dtype=torch.int64)
        for h in range(min(self.horizon, self.layers - 1)):
            ids[: self.layers - h - 1, :, h] = self.ids_LNK[h + 1 :, rows_B]
        after_B = self.next_N[rows_B]
        ids[:, after_B >= 0, -1] = self.ids_LNK[:, after_B[after_B >= 0]]
        valid = (ids < self.experts).all(-1)
        return torch.where(valid[..., None], ids, 0), valid

    def members(self, rows_B: torch.Tensor, layer: int) -> torch.Tensor:
        """float32 [B, E]: 1 where the expert was routed."""
        ids_BK = self.ids_LNK[layer, rows_B].clamp(max=self.experts)  # unrecorded ids fall off the end
        return torch.zeros(len(rows_B), self.experts + 1).scatter_(1, ids_BK, 1.0)[:, : self.experts]


class Whitening:
    """Inputs of each layer, centred and scaled to unit variance in every direction of the training rows."""

    def __init__(self, hidden_LND: torch.Tensor, fit: torch.Tensor) -> None:
        self.mean_L1D = hidden_LND[:, fit].mean(1, keepdim=True)
        centred = hidden_LND - self.mean_L1D
        covariance = centred[:, fit].transpose(1, 2) @ centred[:, fit] / len(fit)
        found = np.linalg.eigh(covariance.double().numpy())  # torch's batched one is slow where threads compete
        values_LD, self._axes_LDD = (torch.from_numpy(part).float() for part in found)
        self._variance_LD = values_LD.clamp(min=0)
        self._mean_L1 = self._variance_LD.mean(1, keepdim=True) + 1e-12
        self._scale_LD = torch.sqrt(self._variance_LD + FLOOR * self._mean_L1)
        self.matrix_LDD = self._axes_LDD / self._scale_LD[:, None]
        self.inputs_LND = centred @ self.matrix_LDD

    def ridge(self, layer: int, crossed_DE: torch.Tensor, ridge: float) -> torch.Tensor:
        """Ridge regression on the unwhitened inputs, as a map of the whitened ones, given mean products with the target.

        A penalty of `ridge` times the mean variance shrinks direction d by variance / (variance + penalty).
        """
        variance_D = self._variance_LD[layer]
        shrunk_D = self._scale_LD[layer] ** 2 / (variance_D + ridge * self._mean_L1[layer])
        return shrunk_D[:, None] * crossed_DE

    def whitened(self, layer: int, weight_DE: torch.Tensor) -> torch.Tensor:
        """The map of whitened inputs that does what `weight_DE` does to centred ones."""
        return self._scale_LD[layer][:, None] * (self._axes_LDD[layer].T @ weight_DE)


def map_logits(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, rows_B: torch.Tensor
) -> torch.Tensor:
    """float32 [L, B, H, E]."""
    return torch.baddbmm(bias, inputs_LND[:, rows_B], weight).view(
        rows.layers, len(rows_B), rows.horizon + 1, rows.experts
    )


@torch.no_grad()
def mean_recall(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, held: torch.Tensor
) -> torch.Tensor:
    """Recall at width K of each forecast row on the held-out rows, mean over layers: float64 [H]."""
    hits = torch.zeros(rows.layers, rows.horizon + 1, dtype=torch.float64)
    count = torch.zeros_like(hits)
    for rows_B in held.split(2048):
        ids, valid = rows.targets(rows_B)
        top = map_logits(weight, bias, inputs_LND, rows, rows_B).topk(rows.top_k, -1).indices
        found = (top[..., None] == ids[..., None, :]).any(-1).sum(-1)
        hits += (found * valid).sum(1)
        count += valid.sum(1) * rows.top_k
    exists = count > 0
    return (hits / count.clamp(min=1)).sum(0) / exists.sum(0).clamp(min=1)
