"""The CPU kernel behind predictors of linear form: one linear map of the router's input, compiled, in a fixed order of sums.

It is a `rgpu.contracts.LinearForecast` and gives the bits of the predictors' own numpy reference. Outputs lie side by
side in the vector registers and inputs follow one another, so vectors do not change the order in which an output is
summed; a product is rounded before it is added (no fused multiply-add), as in numpy.

Legend: N rows, D inputs, M outputs.
"""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _forward(x_ND, weight_DM, bias_M, y_NM):  # type: ignore[no-untyped-def]
    """Four inputs a sweep over the outputs, which stay in the first-level cache."""
    rows, inputs = x_ND.shape
    outputs = bias_M.shape[0]
    whole = inputs - inputs % 4
    for n in range(rows):
        for m in range(outputs):
            y_NM[n, m] = 0
        for d in range(0, whole, 4):
            a, b, c, e = x_ND[n, d], x_ND[n, d + 1], x_ND[n, d + 2], x_ND[n, d + 3]
            for m in range(outputs):
                y = y_NM[n, m] + a * weight_DM[d, m]
                y = y + b * weight_DM[d + 1, m]
                y = y + c * weight_DM[d + 2, m]
                y_NM[n, m] = y + e * weight_DM[d + 3, m]
        for d in range(whole, inputs):
            a = x_ND[n, d]
            for m in range(outputs):
                y_NM[n, m] += a * weight_DM[d, m]
        for m in range(outputs):
            y_NM[n, m] += bias_M[m]


def linear_forecast(x_ND: np.ndarray, weight_DM: np.ndarray, bias_M: np.ndarray) -> np.ndarray:
    """float32 [N, M] `x @ weight + bias`. `x_ND` of any float dtype, rounded to float32; the others contiguous float32."""
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    inputs, outputs = weight_DM.shape
    assert x_ND.shape[1] == inputs and bias_M.shape == (outputs,)  # the compiled code checks no bounds
    y_NM = np.empty((len(x_ND), outputs), np.float32)
    _forward(x_ND, weight_DM, bias_M, y_NM)
    return y_NM
