"""Where a session may compute."""

import torch

from rgpu.errors import InputError


def device_of(name: str) -> torch.device:
    """The device by name; `InputError` for one that rgpu does not run on or that is not there."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device: got {name!r}; expected cpu or cuda")
    if name != "cpu" and not torch.cuda.is_available():
        raise InputError(
            f"device: got {name!r}, and torch {torch.__version__} finds no GPU; expected one; set device=cpu"
        )
    return torch.device(name)
