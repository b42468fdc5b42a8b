"""NVFP4 checkpoints of NVIDIA ModelOpt.

A matrix is `weight` uint8 [N, K/2] (the low nibble of a byte is the even column), `weight_scale` float8_e4m3fn [N, K/16] and
`weight_scale_2` float32, a factor. A checkpoint of MIXED_PRECISION names the algorithm of every layer in
`quantized_layers`; its experts are read where that is NVFP4. `input_scale` is of no use to weights and passed over.

Legend: N rows, K columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rgpu.checkpoint.module import Module
from rgpu.checkpoint.packing import nibbles
from rgpu.checkpoint.reader import Matrix, Modules
from rgpu.errors import InputError
from rgpu.quant.nvfp4 import Nvfp4

_ALGORITHMS = ("NVFP4", "W4A16_NVFP4")


@dataclass(frozen=True, slots=True)
class ModelOpt:
    """The codec of NVFP4 experts; `layers` is the algorithm of a module and of all below it, by its name."""

    format: Nvfp4
    layers: Mapping[str, str]

    def matrix(self, module: Module) -> Matrix:
        """See `Codec.matrix`."""
        self._check_algorithm(module)
        module.only(("weight", "weight_scale", "weight_scale_2"), ignored=("input_scale",))
        packed = module.matrix("weight", torch.uint8)
        rows, cols = packed.shape[0], 2 * packed.shape[1]
        scale_NG = module.shaped("weight_scale", (rows, cols // 16), torch.float8_e4m3fn)
        factor = module.take("weight_scale_2", torch.float32)
        if factor.numel() != 1:
            raise InputError(
                f"cannot read the {module.title}: got {module.name('weight_scale_2')} {list(factor.shape)}; expected one number"
            )
        return Matrix(self.format.store(nibbles(packed), scale_NG, factor.reshape(1)), rows, cols)

    def _check_algorithm(self, module: Module) -> None:
        name = module.stem
        while name and name not in self.layers:
            name = name.rpartition(".")[0]
        if name and self.layers[name] not in _ALGORITHMS:
            raise InputError(
                f"cannot read the {module.title}: got {self.layers[name]} for {module.stem} in quantized_layers; expected one "
                f"of {', '.join(_ALGORITHMS)} for every expert"
            )


def modelopt(settings: Mapping[str, Any], first: Modules) -> ModelOpt:
    """The codec of a ModelOpt checkpoint; `InputError` for other algorithms than NVFP4."""
    first[0].unstacked("ModelOpt")
    algorithm = settings.get("quant_algo")
    if algorithm not in (*_ALGORITHMS, "MIXED_PRECISION"):
        raise InputError(
            f"cannot read a ModelOpt checkpoint: got quant_algo {algorithm!r}; expected one of {', '.join(_ALGORITHMS)}, or "
            "MIXED_PRECISION with NVFP4 experts"
        )
    layers = settings.get("quantized_layers") if algorithm == "MIXED_PRECISION" else None
    named = {name: str(entry.get("quant_algo")) for name, entry in (layers or {}).items() if isinstance(entry, dict)}
    return ModelOpt(Nvfp4(), named)
