"""`Module`: the tensors of one projection of one expert, as a checkpoint stores them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rgpu.errors import InputError


@dataclass(frozen=True, slots=True)
class Module:
    """`tensors` by suffix (`weight`, `weight_scale`, ...) and the full names that they have in the checkpoint.

    `title` says which projection this is; `stacked`: the checkpoint holds all experts of a layer in one tensor; `joined`:
    and gate and up are rows of one.
    """

    title: str
    stem: str
    tensors: Mapping[str, torch.Tensor]
    names: Mapping[str, str]
    stacked: bool = False
    joined: bool = False

    def name(self, suffix: str) -> str:
        """The full name of the tensor `suffix`, also where the checkpoint lacks it."""
        return self.names.get(suffix, f"{self.stem}.{suffix}")

    def only(self, known: tuple[str, ...], ignored: tuple[str, ...] = ()) -> None:
        """`InputError` for a tensor that is neither `known` nor `ignored`: one that a reader must not pass over."""
        for suffix in self.tensors:
            if suffix not in known and suffix not in ignored and suffix != "bias":
                raise InputError(
                    f"cannot read the {self.title}: got the tensor {self.name(suffix)}; expected only "
                    f"{', '.join(known)}; rgpu does not know this layout"
                )

    def unstacked(self, layout: str) -> None:
        """`InputError` where the experts are stacked, in a `layout` that rgpu knows one expert at a time only."""
        if self.stacked:
            raise InputError(
                f"cannot read the {self.title}: got {self.stem} stacked over the experts; expected tensors of single experts "
                f"for {layout}"
            )

    def take(self, suffix: str, *dtypes: torch.dtype) -> torch.Tensor:
        """The tensor `suffix`; `InputError` where it is missing or of none of the `dtypes`."""
        tensor = self.tensors.get(suffix)
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        if tensor is None:
            raise InputError(
                f"incomplete {self.title}: got no tensor {self.name(suffix)}; expected one of {wanted}; download the "
                "checkpoint again, or rgpu does not know its layout"
            )
        if tensor.dtype not in dtypes:
            raise InputError(
                f"cannot read the {self.title}: got {self.name(suffix)} in {str(tensor.dtype).removeprefix('torch.')}; "
                f"expected {wanted}"
            )
        return tensor

    def shaped(self, suffix: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> torch.Tensor:
        """`take` of a tensor that must have `shape`."""
        tensor = self.take(suffix, *dtypes)
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"cannot read the {self.title}: got {self.name(suffix)} {list(tensor.shape)}; expected {list(shape)}"
            )
        return tensor

    def matrix(self, suffix: str, *dtypes: torch.dtype) -> torch.Tensor:
        """`take` of a tensor that must have two dimensions."""
        tensor = self.take(suffix, *dtypes)
        if tensor.dim() != 2:
            raise InputError(
                f"cannot read the {self.title}: got {self.name(suffix)} {list(tensor.shape)}; expected a matrix"
            )
        return tensor

    def bias(self) -> torch.Tensor | None:
        """float32 (exact for every float dtype that checkpoints use), or None."""
        if "bias" not in self.tensors:
            return None
        return self.take("bias", torch.float32, torch.bfloat16, torch.float16).float()
