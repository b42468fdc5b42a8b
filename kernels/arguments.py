"""What launchers ask of their tensors before a kernel sees a pointer: one line for the user instead of a fault on a GPU."""

from collections.abc import Sequence

import torch

from rgpu.errors import InputError


def check_tensor(
    where: str, name: str, tensor: torch.Tensor, dtypes: Sequence[torch.dtype], shape: Sequence[int | str]
) -> None:
    """`InputError` unless `tensor` is contiguous, of one of `dtypes` and of `shape`, in which a letter is any size."""
    got = list(tensor.shape)
    fits = len(got) == len(shape) and all(isinstance(s, str) or s == g for s, g in zip(shape, got, strict=True))
    if not fits or tensor.dtype not in dtypes or not tensor.is_contiguous():
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        state = "" if tensor.is_contiguous() else ", not contiguous"
        raise InputError(
            f"{where}: got {name} {str(tensor.dtype).removeprefix('torch.')} {got}{state}; "
            f"expected {names} [{', '.join(map(str, shape))}], contiguous; convert it first"
        )


def check_one_device(where: str, *tensors: torch.Tensor) -> None:
    """`InputError` where tensors lie on several devices."""
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise InputError(f"{where}: got tensors on {', '.join(devices)}; expected one device; move them to it")
