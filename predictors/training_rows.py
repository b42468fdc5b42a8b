"""Rows of a trace as training pairs: inputs read by row number from memory or from disk, targets, held-out rows.

Legend: N rows of a trace, B rows of a batch, L MoE layers, H forecast rows a layer (1..horizon layers ahead, then the
next token), D hidden size, E experts, K top-k.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rgpu.traces.split import split
from rgpu.traces.trace import PADDING, Trace

HELD = 8192  # rows that choices are made on, at most: recall to half a percent
READ = 2048  # rows read at a time, fewer where they would take more than
READ_BYTES = 128 << 20


class Rows:
    """Rows of a trace as training pairs: input (row, layer), target experts `h + 1` layers or one token later."""

    def __init__(self, trace: Trace, horizon: int) -> None:
        self.horizon, self.layers, self.top_k = horizon, trace.layers, trace.header.top_k
        self.experts, self.missing = trace.header.num_experts, trace.missing
        self._ids_NLK = trace.expert_ids
        self.sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
        real_N = np.ones(trace.tokens, bool) if trace.phase is None else trace.phase != PADDING
        follows = np.zeros(trace.tokens, bool)
        follows[:-1] = (self.sequence_N[1:] == self.sequence_N[:-1]) & real_N[1:]
        self.next_N = torch.from_numpy(np.where(follows, np.arange(trace.tokens) + 1, -1))
        self.real = np.flatnonzero(real_N)

    def ids(self, rows_B: torch.Tensor) -> torch.Tensor:
        """int64 [L, B, K]."""
        return torch.from_numpy(self._ids_NLK[rows_B.numpy()].astype(np.int64)).transpose(0, 1)

    def targets(self, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts int64 [L, B, H, K] in rank order and bool [L, B, H]: whether that target exists and was recorded."""
        ids = torch.full((self.layers, len(rows_B), self.horizon + 1, self.top_k), self.missing, dtype=torch.int64)
        here_LBK = self.ids(rows_B)
        for h in range(min(self.horizon, self.layers - 1)):
            ids[: self.layers - h - 1, :, h] = here_LBK[h + 1 :]
        after_B = self.next_N[rows_B]
        ids[:, after_B >= 0, -1] = self.ids(after_B[after_B >= 0])
        valid = (ids < self.experts).all(-1)
        return torch.where(valid[..., None], ids, 0), valid

    def members(self, rows_B: torch.Tensor) -> torch.Tensor:
        """float32 [L, B, E]: 1 where the expert was routed."""
        ids_LBK = self.ids(rows_B).clamp(max=self.experts)  # unrecorded ids fall off the end
        return torch.zeros(self.layers, len(rows_B), self.experts + 1).scatter_(2, ids_LBK, 1.0)[..., : self.experts]

    def parts(self, trace: Trace, validation: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that train and rows that are held out: other documents, or the last rows where there is only one."""
        held = np.isin(self.sequence_N[self.real], split(trace, 1 - validation, seed).scored)
        if held.all():
            held = np.arange(len(held)) >= round(len(held) * (1 - validation))
        if held.all() or not held.any():  # too short to hold anything out
            held = np.zeros(len(held), bool)
            return torch.from_numpy(self.real), torch.from_numpy(self.real)
        kept = self.real[held]
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, min(HELD, len(kept))).astype(np.int64))]
        return torch.from_numpy(self.real[~held]), torch.from_numpy(kept)

    def together(self, dims: int) -> int:
        """Rows whose inputs of `dims` a layer, and logits, are in memory together."""
        return at_once(4 * self.layers * (dims + 3 * (self.horizon + 1) * self.experts))

    def key(self, who: str, parameters: dict[str, Any], inputs: "list[HiddenRows | np.ndarray]", *beside: Any) -> str:
        """What a training is of: digest of a predictor and all its parameters, of the targets, of every real row of
        the inputs, read a piece at a time, and of whole arrays beside these."""
        digest = hashlib.sha256(json.dumps([who, parameters], default=str).encode())
        digest.update(np.ascontiguousarray(self._ids_NLK).tobytes() + self.next_N.numpy().tobytes())
        for one in inputs:
            step = one.step if isinstance(one, HiddenRows) else READ
            for start in range(0, len(self.real), step):
                rows = self.real[start : start + step]
                stored = one.stored(rows) if isinstance(one, HiddenRows) else one[rows]
                digest.update(f"{stored.dtype}{stored.shape}".encode() + np.ascontiguousarray(stored).tobytes())
        for array in beside:
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def at_once(bytes_a_row: int) -> int:
    """Rows worked on together."""
    return max(1, min(READ, READ_BYTES // max(1, bytes_a_row)))


class HiddenRows:
    """Router inputs by row number, float32 [L, B, D]; `hidden_NLD` may be mapped from disk, and only rows are read.

    `last`: of the last layer alone, L being 1. `step`: rows of a piece of `chunks`."""

    def __init__(self, hidden_NLD: np.ndarray, last: bool = False) -> None:
        self._hidden_NLD, self._layers = hidden_NLD, slice(-1, None) if last else slice(None)
        self.layers, self.size = 1 if last else int(hidden_NLD.shape[1]), int(hidden_NLD.shape[2])
        self.step = at_once(4 * self.layers * self.size)

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """As the trace has them, [B, L, D]."""
        return self._hidden_NLD[rows, self._layers]

    def __call__(self, rows_B: torch.Tensor) -> torch.Tensor:
        sorted_B, back_B = torch.sort(rows_B)  # a disk is read forwards
        found_BLD = torch.from_numpy(np.ascontiguousarray(self.stored(sorted_B.numpy()))).float()
        return found_BLD[torch.argsort(back_B)].transpose(0, 1)

    def chunks(self, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(row numbers, their inputs) a piece at a time."""
        for rows_B in rows.split(self.step):
            yield rows_B, self(rows_B)
