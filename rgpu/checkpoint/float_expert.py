"""`FloatExpert`: one expert in plain numbers, as a checkpoint gives it. Legend: I expert width, D hidden size."""

from typing import NamedTuple

import torch


class FloatExpert(NamedTuple):
    """gate [I, D], up [I, D], down [D, I]; biases [I], [I], [D] or None."""

    matrices: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    biases: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
