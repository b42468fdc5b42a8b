"""What the round-to-nearest quantisers share: groups of a weight, and scales that a storage dtype can hold.

Legend: N rows, K columns, G groups of a row, C columns of a group.
"""

import torch

from rgpu.errors import InputError
from rgpu.quant.format import QuantFormat

_BITS = {2: torch.int16, 4: torch.int32}


def grouped(fmt: QuantFormat, weight_NK: torch.Tensor, group: int) -> torch.Tensor:
    """float32 [N, G, C]: the columns of a floating-point matrix in groups (0: a row is one group). `InputError` for a
    shape that does not fit `fmt` and for numbers that are not finite."""
    if weight_NK.dim() != 2 or not weight_NK.dtype.is_floating_point:
        shape = list(weight_NK.shape)
        raise InputError(f"{fmt.name}: got weights {weight_NK.dtype} {shape}; expected a float matrix [N, K]")
    fmt.parts(*weight_NK.shape)
    weight = weight_NK.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise InputError(
            f"{fmt.name}: got weights that are not finite; expected finite numbers; the checkpoint is damaged"
        )
    return weight.reshape(weight.shape[0], -1, group or weight.shape[1])


def hold_scale(name: str, scale: torch.Tensor, dtype: torch.dtype, steps: int) -> torch.Tensor:
    """`scale` (float64, not negative) rounded to `dtype`: to nearest, but up below its normal numbers, where nearest could
    halve a scale and clip weights. `InputError` where `dtype` cannot hold a scale, or float32 not `steps` times it."""
    held = scale.to(dtype)
    short = (held < torch.finfo(dtype).tiny) & (held.double() < scale)
    held = (held.view(_BITS[dtype.itemsize]) + short).view(dtype)  # the next number up has the next bits
    if not bool(torch.isfinite(held.float() * steps).all()):
        most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max / steps)
        raise InputError(
            f"{name}: got weights that need a scale of {float(scale.max()):.4g}; expected at most {most:.4g} with "
            f"{str(dtype).removeprefix('torch.')} scales; use scales of a wider range, or check the weights"
        )
    return held


def codes_of(weight_NGC: torch.Tensor, scale_NG: torch.Tensor, zero_NG: torch.Tensor, top: int) -> torch.Tensor:
    """uint8 [N, K]: weight / scale + zero, rounded to nearest even and kept within 0..top; the zero where the scale is 0."""
    step = scale_NG.float().unsqueeze(-1)
    steps = torch.where(step == 0, 0.0, weight_NGC / torch.where(step == 0, 1.0, step))
    codes = (steps.round() + zero_NG.float().unsqueeze(-1)).clamp(0, top)
    return codes.to(torch.uint8).reshape(weight_NGC.shape[0], -1)
