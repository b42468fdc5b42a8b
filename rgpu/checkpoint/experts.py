"""Float experts of a safetensors checkpoint, read lazily: one expert at a time, never a whole layer.

Legend: I expert width, D hidden size.
"""

from pathlib import Path

import torch

from rgpu.checkpoint.expert_tensors import ExpertTensors
from rgpu.checkpoint.files import checkpoint_files
from rgpu.checkpoint.float_expert import FloatExpert
from rgpu.errors import InputError

__all__ = ["CheckpointExperts", "checkpoint_files"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class CheckpointExperts:
    """The routed experts of the checkpoint in `folder` (see `ExpertTensors`, as are the options) as plain matrices.

    `layer_ids` are the model's layer numbers that hold experts; `bias`: whether the projections have biases. Raises
    `InputError` for a folder without a readable safetensors checkpoint or without such experts. Use as a context manager:
    the files stay mapped while it is open.
    """

    def __init__(self, folder: Path, *, interleaved: bool = False, layers: int | None = None) -> None:
        self.folder = folder
        self.tensors = ExpertTensors(folder, interleaved=interleaved, layers=layers)
        self.files = self.tensors.files.files
        self.layer_ids, self.experts = self.tensors.layer_ids, self.tensors.experts
        first = self.tensors.modules(self.layer_ids[0], 0)[0]
        gate = first.matrix("weight", *_FLOATS)
        self.intermediate, self.hidden = gate.shape
        self.bias = first.bias() is not None

    def read(self, layer: int, expert: int) -> FloatExpert:
        """One expert (`layer` is the model's number) in its stored dtype, biases in float32."""
        modules = self.tensors.modules(layer, expert)
        wide, narrow = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        gate, up, down = (module.matrix("weight", *_FLOATS) for module in modules)
        for got, expected in ((gate, wide), (up, wide), (down, narrow)):
            if tuple(got.shape) != expected:
                raise InputError(
                    f"cannot use {self.folder}: got shapes {tuple(gate.shape)}, {tuple(up.shape)}, {tuple(down.shape)} for "
                    f"expert {expert} of layer {layer}; expected {wide}, {wide}, {narrow} as in every other expert"
                )
        biases = [module.bias() for module in modules]
        if any((bias is not None) != self.bias for bias in biases):
            raise InputError(
                f"cannot use {self.folder}: got {sum(b is not None for b in biases)} of 3 biases of expert {expert} of layer "
                f"{layer}; expected {3 if self.bias else 0} as in every other expert"
            )
        return FloatExpert((gate, up, down), (biases[0], biases[1], biases[2]) if self.bias else None)  # type: ignore[arg-type]

    def close(self) -> None:
        """Drops the file handles (and their mappings)."""
        self.tensors.close()

    def __enter__(self) -> "CheckpointExperts":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
