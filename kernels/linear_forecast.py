"""The CPU kernel behind predictors of linear form: one linear map of the router's input, compiled, in a fixed order of sums.

It is a `rgpu.contracts.LinearForecast` and gives the bits of the predictors' own numpy reference. Outputs lie side by
side in the vector registers and inputs follow one another, so vectors do not change the order in which an output is
summed; a product is rounded before it is added (no fused multiply-add), as in numpy. Inputs that are scaled to a root mean
square of 1 are scaled on their way into the sums: an array of them and a handful of calls of numpy would take longer.

Legend: N rows, D inputs, M outputs.
"""

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _scale(x_D, tiny):  # type: ignore[no-untyped-def]
    """float32 that a row is multiplied by; squares of float32 are exact in float64, so only their sum is rounded."""
    total = 0.0
    for d in range(x_D.shape[0]):
        total += np.float64(x_D[d]) * np.float64(x_D[d])
    return np.float32(1.0 / math.sqrt(total / x_D.shape[0] + tiny))


@njit(cache=True, nogil=True)
def _scaled(x_ND, tiny, y_ND):  # type: ignore[no-untyped-def]
    for n in range(x_ND.shape[0]):
        scale = _scale(x_ND[n], tiny)
        for d in range(x_ND.shape[1]):
            y_ND[n, d] = x_ND[n, d] * scale


@njit(cache=True, nogil=True)
def _forward(x_ND, weight_DM, bias_M, tiny, y_NM):  # type: ignore[no-untyped-def]
    """Four inputs a sweep over the outputs, which stay in the first-level cache."""
    rows, inputs = x_ND.shape
    outputs = bias_M.shape[0]
    whole = inputs - inputs % 4
    for n in range(rows):
        scale = _scale(x_ND[n], tiny) if tiny > 0 else np.float32(1)
        for m in range(outputs):
            y_NM[n, m] = 0
        for d in range(0, whole, 4):
            a, b = x_ND[n, d] * scale, x_ND[n, d + 1] * scale
            c, e = x_ND[n, d + 2] * scale, x_ND[n, d + 3] * scale
            for m in range(outputs):
                y = y_NM[n, m] + a * weight_DM[d, m]
                y = y + b * weight_DM[d + 1, m]
                y = y + c * weight_DM[d + 2, m]
                y_NM[n, m] = y + e * weight_DM[d + 3, m]
        for d in range(whole, inputs):
            a = x_ND[n, d] * scale
            for m in range(outputs):
                y_NM[n, m] += a * weight_DM[d, m]
        for m in range(outputs):
            y_NM[n, m] += bias_M[m]


def scaled(x_ND: np.ndarray, tiny: float) -> np.ndarray:
    """float32 [N, D]: the rows that a map of scaled inputs is applied to (`rgpu.contracts.LinearForecast`)."""
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    y_ND = np.empty_like(x_ND)
    _scaled(x_ND, tiny, y_ND)
    return y_ND


def linear_forecast(x_ND: np.ndarray, weight_DM: np.ndarray, bias_M: np.ndarray, tiny: float = 0.0) -> np.ndarray:
    """float32 [N, M] `x @ weight + bias`. `x_ND` of any float dtype, rounded to float32; the others contiguous float32.

    `tiny` above 0: of rows scaled to a root mean square of 1, so much added to the mean square.
    """
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    inputs, outputs = weight_DM.shape
    assert x_ND.shape[1] == inputs and bias_M.shape == (outputs,)  # the compiled code checks no bounds
    y_NM = np.empty((len(x_ND), outputs), np.float32)
    _forward(x_ND, weight_DM, bias_M, tiny, y_NM)
    return y_NM
