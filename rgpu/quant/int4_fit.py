"""int4 scales and zero points that minimise the squared error of the weights, group by group; never worse than rounding.

For several starting scales in turn: codes by rounding to nearest, then the scale that is best for these codes in least
squares, twice. The best start wins if it beats `Int4.quantize` once its scale has been rounded to the storage dtype. The
two steps are those of Lloyd's quantiser design (Lloyd, 1982) with equal steps as the constraint. A symmetric format also
tries negative scales: its codes reach from -8 to 7, so the longer tail can have the code that the other lacks.

Legend: N rows, K columns, G groups of a row, M groups at a time, C columns of a group.
"""

import torch

from rgpu.quant.int4 import Int4
from rgpu.quant.rounding import codes_of, grouped

RATIOS = tuple(0.6 + 0.05 * step for step in range(11))  # of the scale that clips nothing
ROUNDS = 2
CHUNK = 1 << 15  # groups at a time: bounds the memory, changes no result


def fit(fmt: Int4, weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """Arrays of a float matrix [N, K] (columns in stored order). Deterministic. `InputError` as `Int4.quantize`."""
    weight_NGC = grouped(fmt, weight_NK, fmt.group)
    rounded = fmt.quantize(weight_NK)
    zero_NG = rounded.get("zero", torch.full_like(rounded["scale"], 8, dtype=torch.uint8))
    plain = fmt.codes(rounded), rounded["scale"], zero_NG
    flat_MC = weight_NGC.reshape(-1, fmt.group)
    found = [_search(part, fmt.asymmetric) for part in flat_MC.split(CHUNK)]
    scale_NG, zero_NG = (torch.cat(parts).reshape(weight_NGC.shape[:2]) for parts in zip(*found, strict=True))
    scale_NG = scale_NG.to(fmt.scale_dtype)
    fitted = codes_of(weight_NGC, scale_NG, zero_NG, 15), scale_NG, zero_NG.to(torch.uint8)
    better_NG = _error(weight_NGC, *fitted) < _error(weight_NGC, *plain)  # False where a scale became infinite: NaN
    codes = torch.where(better_NG.repeat_interleave(fmt.group, 1), fitted[0], plain[0])
    scale_NG, zero_NG = (torch.where(better_NG, mine, other) for mine, other in zip(fitted[1:], plain[1:], strict=True))
    return fmt.store(codes, scale_NG, zero_NG.to(torch.uint8) if fmt.asymmetric else None)


def _search(weight_MC: torch.Tensor, asymmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero) float32 [M] of the start that ends with the smallest squared error, before rounding the scale."""
    size_M = weight_MC.abs().amax(-1)
    size_M = torch.where(size_M == 0, 1.0, size_M)
    weight_MC = weight_MC / size_M[:, None]  # so that no square leaves float32's range
    low_M, high_M = weight_MC.amin(-1).clamp(max=0), weight_MC.amax(-1).clamp(min=0)
    whole_M = (high_M - low_M) / 15 if asymmetric else torch.maximum(-low_M, high_M) / 7.5
    whole_M = torch.where(whole_M == 0, 1.0, whole_M)
    best_M, best_scale_M, best_zero_M = torch.full_like(size_M, torch.inf), whole_M, torch.full_like(size_M, 8)
    for ratio in RATIOS if asymmetric else (*RATIOS, *(-ratio for ratio in RATIOS)):
        scale_M, zero_M = ratio * whole_M, torch.full_like(size_M, 8)
        if asymmetric:
            zero_M = (7.5 - (low_M + high_M) / 2 / scale_M).round().clamp(0, 15)  # clip both ends alike
        for _ in range(ROUNDS):
            steps_MC = _steps(weight_MC, scale_M, zero_M)
            power_M = steps_MC.square().sum(-1)
            slope_M = (weight_MC * steps_MC).sum(-1) / power_M
            scale_M = torch.where((power_M > 0) & (slope_M != 0), slope_M, scale_M)
        error_M = (_steps(weight_MC, scale_M, zero_M) * scale_M[:, None] - weight_MC).square().sum(-1)
        better_M = error_M < best_M
        best_M = torch.where(better_M, error_M, best_M)
        best_scale_M = torch.where(better_M, scale_M, best_scale_M)
        best_zero_M = torch.where(better_M, zero_M, best_zero_M)
    return best_scale_M * size_M, best_zero_M


def _steps(weight_MC: torch.Tensor, scale_M: torch.Tensor, zero_M: torch.Tensor) -> torch.Tensor:
    """Codes less their zero point, float32 [M, C]."""
    zero_M1 = zero_M[:, None]
    return ((weight_MC / scale_M[:, None]).round() + zero_M1).clamp(0, 15) - zero_M1


def _error(
    weight_NGC: torch.Tensor, codes_NK: torch.Tensor, scale_NG: torch.Tensor, zero_NG: torch.Tensor
) -> torch.Tensor:
    """Squared error of the stored numbers, float64 [N, G]."""
    steps_NGC = codes_NK.reshape(weight_NGC.shape).float() - zero_NG.float().unsqueeze(-1)
    numbers_NGC = steps_NGC * scale_NG.float().unsqueeze(-1)
    return (numbers_NGC.double() - weight_NGC.double()).square().sum(-1)
