"""Whitened inputs of the linear probe, kept in memory where they fit and made batch by batch where they do not.

Legend: N rows of a trace, B rows of a batch, L MoE layers, D hidden size, E experts.
"""

import numpy as np
import torch

from rgpu.predictors.training_rows import HiddenRows

FLOOR = 1e-4  # of the mean variance: keeps whitening finite along directions without variance


class Whitening:
    """Inputs of each layer, centred and scaled to unit variance in every direction of the `fit` rows.

    `rows`: every row that will be asked for. Where they take `kept_bytes` or less they stay in memory, else they are read and
    whitened again each time."""

    def __init__(self, hidden: HiddenRows, fit: torch.Tensor, rows: torch.Tensor, kept_bytes: int) -> None:
        self._hidden = hidden
        layers, size = hidden.layers, hidden.size
        total_LD = torch.zeros(layers, size, dtype=torch.float64)
        for _, x_LBD in hidden.chunks(fit):
            total_LD += x_LBD.sum(1)
        self.mean_L1D = (total_LD / len(fit)).float()[:, None]
        covariance = [torch.zeros(size, size, dtype=torch.float64) for _ in range(layers)]
        for _, x_LBD in hidden.chunks(fit):
            for layer, x_BD in enumerate(x_LBD):
                centred = x_BD - self.mean_L1D[layer]
                covariance[layer] += centred.T @ centred
        self._variance_LD = torch.zeros(layers, size)
        self.matrix_LDD = torch.zeros(layers, size, size)  # axes, until they are scaled
        for layer in reversed(range(layers)):  # one at a time: of a large model all of them would be gigabytes more
            values_D, axes_DD = np.linalg.eigh(covariance.pop().numpy() / len(fit))
            self._variance_LD[layer] = torch.from_numpy(values_D).float().clamp(min=0)
            self.matrix_LDD[layer] = torch.from_numpy(axes_DD)
        self._mean_L1 = self._variance_LD.mean(1, keepdim=True) + 1e-12
        self._scale_LD = torch.sqrt(self._variance_LD + FLOOR * self._mean_L1)
        self.matrix_LDD /= self._scale_LD[:, None]
        self._kept_LND: torch.Tensor | None = None
        if len(rows) and 4 * layers * (int(rows.max()) + 1) * size <= kept_bytes:
            kept_LND = torch.zeros(layers, int(rows.max()) + 1, size)
            for rows_B, x_LBD in hidden.chunks(rows):
                kept_LND[:, rows_B] = self._whiten(x_LBD)
            self._kept_LND = kept_LND

    def inputs(self, rows_B: torch.Tensor) -> torch.Tensor:
        """float32 [L, B, D]."""
        return self._whiten(self._hidden(rows_B)) if self._kept_LND is None else self._kept_LND[:, rows_B]

    def _whiten(self, x_LBD: torch.Tensor) -> torch.Tensor:
        return (x_LBD - self.mean_L1D) @ self.matrix_LDD

    def ridge(self, crossed_LDM: torch.Tensor, ridge: float) -> torch.Tensor:
        """Ridge regression on the unwhitened inputs, as a map of the whitened ones, given mean products with the target.

        A penalty of `ridge` times the mean variance shrinks direction d by variance / (variance + penalty).
        """
        shrunk_LD = self._scale_LD**2 / (self._variance_LD + ridge * self._mean_L1)
        return shrunk_LD[..., None] * crossed_LDM

    def whitened(self, layer: int, weight_DE: torch.Tensor) -> torch.Tensor:
        """The map of whitened inputs that does what `weight_DE` does to centred ones."""
        return self._scale_LD[layer][:, None] ** 2 * (self.matrix_LDD[layer].T @ weight_DE)
