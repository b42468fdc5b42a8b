"""Tables from a key (a token id, a pair of them) to chances of experts: the likeliest few a layer, the rest backed off.

Legend: N rows, V keys, L MoE layers, E experts, W experts kept a key and layer, G rows that share a key.
"""

from collections.abc import Callable

import numpy as np

Values = Callable[[int, np.ndarray], np.ndarray]  # (layer, rows) -> float32 [rows, E]
STEP = 16384  # rows averaged together: bounds memory


def make_table(
    key_N: np.ndarray, values: Values, layers: int, top_k: int, smoothing: float, keys: int, width: int
) -> dict[str, np.ndarray]:
    """Mean of `values` over the rows of each key, as `apply_table` reads it: at most `keys` of them, the most frequent.

    A key seen n times gives an expert (its sum + `smoothing` * what it backs off to) / (n + `smoothing`). Of the sums the
    `width` largest a layer are kept; what the others held goes to the back-off too, so that chances still sum to K.
    """
    order = np.argsort(key_N, kind="stable")
    found_V, first_V, count_V = np.unique(key_N[order], return_index=True, return_counts=True)
    kept = np.sort(np.argsort(-count_V, kind="stable")[:keys])
    found_V, first_V, count_V = found_V[kept], first_V[kept], count_V[kept]
    spans = [order[first : first + count] for first, count in zip(first_V, count_V, strict=True)]
    rest_VL = np.zeros((len(kept), layers), np.float32)
    expert_VLW = np.zeros((len(kept), layers, width), np.int32)
    chance_VLW = np.zeros((len(kept), layers, width), np.float32)
    size_V = count_V + smoothing
    for layer in range(layers):
        sum_VE = _sums(spans, layer, values)
        top_VW = np.argsort(-sum_VE, axis=1, kind="stable")[:, :width]
        top_sum_VW = np.take_along_axis(sum_VE, top_VW, axis=1)
        lost_V = count_V * top_k - top_sum_VW.sum(1)
        expert_VLW[:, layer], chance_VLW[:, layer] = top_VW, top_sum_VW / size_V[:, None]
        rest_VL[:, layer] = (smoothing + np.maximum(lost_V, 0) / top_k) / size_V
    return {"key_V": found_V.astype(np.int64), "rest_VL": rest_VL, "expert_VLW": expert_VLW, "chance_VLW": chance_VLW}


def _sums(spans: list[np.ndarray], layer: int, values: Values) -> np.ndarray:
    """float64 [V, E]: the values of each span of rows, summed."""
    pieces = [(v, span[i : i + STEP]) for v, span in enumerate(spans) for i in range(0, len(span), STEP)]
    sum_VE, start = np.zeros((0, 1)), 0
    while start < len(pieces):
        stop, rows = start + 1, len(pieces[start][1])
        while stop < len(pieces) and rows + len(pieces[stop][1]) <= STEP:
            rows += len(pieces[stop][1])
            stop += 1
        some = [piece for _, piece in pieces[start:stop]]
        at = np.cumsum([0, *(len(piece) for piece in some[:-1])])
        found = np.add.reduceat(values(layer, np.concatenate(some)).astype(np.float64), at, axis=0)
        sum_VE = sum_VE if start else np.zeros((len(spans), found.shape[1]))
        np.add.at(sum_VE, [v for v, _ in pieces[start:stop]], found)
        start = stop
    return sum_VE


def apply_table(
    table: dict[str, np.ndarray], key_N: np.ndarray, layers_H: np.ndarray, back_off_NHE: np.ndarray
) -> np.ndarray:
    """float32 [N, H, E]: chances at `layers_H` for each key; unknown keys back off wholly. Row n depends on row n alone."""
    key_V = table["key_V"]
    if not len(key_V):
        return back_off_NHE
    at_N = np.minimum(np.searchsorted(key_V, key_N), len(key_V) - 1)
    known_N11 = (key_V[at_N] == key_N)[:, None, None]
    at_NH = at_N[:, None], layers_H[None]
    rest_NH1 = np.where(known_N11, table["rest_VL"][at_NH][:, :, None], np.float32(1))
    chance_NHE = back_off_NHE * rest_NH1
    expert_NHW = table["expert_VLW"][at_NH]
    add_NHW = np.where(known_N11, table["chance_VLW"][at_NH], np.float32(0))
    own_NHW = np.take_along_axis(chance_NHE, expert_NHW, axis=2)
    np.put_along_axis(chance_NHE, expert_NHW, np.minimum(own_NHW + add_NHW, np.float32(1)), axis=2)
    return chance_NHE
