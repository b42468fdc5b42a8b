"""Float experts of a safetensors checkpoint, read lazily: one expert at a time, never a whole layer.

Legend: E experts a layer, I expert width, D hidden size.
"""

from pathlib import Path

import torch

from rgpu.checkpoint.expert_tensors import ExpertTensors
from rgpu.checkpoint.files import checkpoint_files
from rgpu.errors import InputError

__all__ = ["CheckpointExperts", "checkpoint_files"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class CheckpointExperts:
    """The routed experts of the checkpoint in `folder` (see `ExpertTensors`) as plain matrices.

    `layer_ids` are the model's layer numbers that hold experts. Raises `InputError` for a folder without a readable
    safetensors checkpoint or without such experts. Use as a context manager: the files stay mapped while it is open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = ExpertTensors(folder)
        self.files = self.tensors.files.files
        if self.tensors.transposed:
            raise InputError(
                f"cannot use {folder}: got transposed experts; expected [2I, D] and [D, I] as in Qwen3-MoE; choose such a model"
            )
        self.layer_ids, self.experts = self.tensors.layer_ids, self.tensors.experts
        gate = self.tensors.modules(self.layer_ids[0], 0)[0].matrix("weight", *_FLOATS)
        self.intermediate, self.hidden = gate.shape

    def read(self, layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`gate` [I, D], `up` [I, D] and `down` [D, I] of one expert (`layer` is the model's number), stored dtype."""
        gate, up, down = (module.matrix("weight", *_FLOATS) for module in self.tensors.modules(layer, expert))
        wide, narrow = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        if tuple(gate.shape) != wide or tuple(up.shape) != wide or tuple(down.shape) != narrow:
            raise InputError(
                f"cannot use {self.folder}: got shapes {tuple(gate.shape)}, {tuple(up.shape)}, {tuple(down.shape)} for "
                f"expert {expert} of layer {layer}; expected {wide}, {wide}, {narrow} as in every other expert"
            )
        return gate, up, down

    def close(self) -> None:
        """Drops the file handles (and their mappings)."""
        self.tensors.close()

    def __enter__(self) -> "CheckpointExperts":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
