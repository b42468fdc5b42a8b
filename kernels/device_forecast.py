"""`LinearForecast` on a GPU: maps too large for a core's caches are read from the card's memory, the bits stay the same.

Legend: N rows, D inputs, M outputs.
"""

from dataclasses import dataclass

import numpy as np
import torch

from rgpu.kernels.lookahead import lookahead


@dataclass(frozen=True, slots=True)
class _Map:
    """A map on the device, and the host's arrays: while they live, nothing else has their addresses."""

    weight_DM: torch.Tensor
    bias_M: torch.Tensor
    host: tuple[np.ndarray, np.ndarray]


class DeviceForecast:
    """Copies each map to `device` when it first comes and keeps it: maps must not change, and take their bytes there.

    Rows go there and logits come back, on a stream of its own, which waits for nothing else that the device computes.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._maps: dict[tuple[int, int, tuple[int, ...]], _Map] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the maps on the device."""
        return sum(one.weight_DM.nbytes + one.bias_M.nbytes for one in self._maps.values())

    def __call__(self, x_ND: np.ndarray, weight_DM: np.ndarray, bias_M: np.ndarray, tiny: float = 0.0) -> np.ndarray:
        """float32 [N, M], as `rgpu.contracts.LinearForecast` says; rows are scaled before they are copied."""
        if tiny > 0:
            from rgpu.kernels.linear_forecast import scaled  # compiled by numba, which kernels are checked without

            x = torch.from_numpy(scaled(x_ND, tiny))
        else:
            x = torch.from_numpy(np.array(x_ND, np.float32, order="C"))
        with torch.cuda.stream(self._stream):
            there = self._map(weight_DM, bias_M)
            found = lookahead(x.to(self.device), there.weight_DM, there.bias_M, len(bias_M), 1, "none")
            logits_NM: np.ndarray = found.logits_NHE[:, 0].cpu().numpy()
        return logits_NM

    def _map(self, weight_DM: np.ndarray, bias_M: np.ndarray) -> _Map:
        key = (weight_DM.ctypes.data, bias_M.ctypes.data, weight_DM.shape)
        found = self._maps.get(key)
        if found is None:
            weight, bias = (torch.tensor(array, device=self.device) for array in (weight_DM, bias_M))
            found = self._maps[key] = _Map(weight, bias, (weight_DM, bias_M))
        return found
