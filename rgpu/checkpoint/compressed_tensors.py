"""compressed-tensors `pack-quantized`: integer codes of 4 or 8 bits in int32 words (llm-compressor's W4A16 and W8A16).

A matrix is `weight_packed` int32 [N, K*bits/32] (code of column k in bits k*bits of its row, counted from the lowest bit of
the first word; stored with 2**(bits - 1) added), `weight_scale` [N, K/G] or [N, 1], `weight_shape` [2] = N, K, and where it
is asymmetric `weight_zero_point` int32 [N*bits/32, K/G], packed alike but along the rows. `weight_g_idx` [K], if any, is
the group of each column. Bits, group and symmetry are read from the tensors themselves: a file may have several schemes.

Legend: N rows, K columns, G columns of a group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rgpu.checkpoint.module import Module
from rgpu.checkpoint.packing import bytes_of, column_order, nibbles
from rgpu.checkpoint.reader import Matrix, Modules
from rgpu.errors import InputError
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8

_SCALES = (torch.float16, torch.bfloat16, torch.float32)
_KNOWN = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """The codec of `pack-quantized` experts in `format`."""

    format: Int4 | Int8

    def matrix(self, module: Module) -> Matrix:
        """See `Codec.matrix`."""
        rows, cols = _shape(module)
        fmt = self.format
        packed = module.shaped("weight_packed", (rows, cols * fmt.bits // 32), torch.int32)
        group = fmt.group or cols
        scale_NG = module.shaped("weight_scale", (rows, cols // group), fmt.scale_dtype)
        if isinstance(fmt, Int8):
            module.only(_KNOWN[:3])
            return Matrix(fmt.store(bytes_of(packed), scale_NG), rows, cols)
        module.only(_KNOWN[: 3 + fmt.asymmetric] + _KNOWN[4:] * fmt.act_order)
        codes_NK = nibbles(bytes_of(packed))
        order = column_order(module, "weight_g_idx", cols, group) if fmt.act_order else None
        if order is not None:
            codes_NK = codes_NK.index_select(1, order)
        zero_NG = None
        if fmt.asymmetric:
            words = module.shaped("weight_zero_point", (-(-rows // 8), cols // group), torch.int32)
            zero_NG = nibbles(bytes_of(words.T)).T[:rows]
        return Matrix(fmt.store(codes_NK, scale_NG, zero_NG), rows, cols, order)


def compressed_tensors(settings: Mapping[str, Any], first: Modules) -> CompressedTensors:
    """The codec of a `pack-quantized` checkpoint; `InputError` for other layouts of compressed-tensors."""
    gate, _, down = first
    gate.unstacked("compressed-tensors")
    if "weight_packed" not in gate.tensors or gate.tensors["weight_packed"].dtype != torch.int32:
        raise InputError(
            f"cannot read the {gate.title}: got compressed-tensors format {settings.get('format')!r} with "
            f"{', '.join(gate.names.values())}; expected pack-quantized ({gate.name('weight_packed')} in int32)"
        )
    _, cols = _shape(gate)
    bits = 32 * gate.matrix("weight_packed", torch.int32).shape[1] // cols
    scale = gate.matrix("weight_scale", *_SCALES)
    group = cols // scale.shape[1] if scale.shape[1] else 0
    if scale.shape[1] == 1 and down.matrix("weight_scale", *_SCALES).shape[1] == 1:
        group = 0
    asymmetric, act_order = (suffix in gate.tensors for suffix in _KNOWN[3:])
    if bits == 8 and not asymmetric and not act_order:
        return CompressedTensors(Int8(group, scale.dtype))
    if bits != 4 or not group:
        kind = "asymmetric" if asymmetric else "symmetric"
        raise InputError(
            f"cannot read the {gate.title}: got {kind} codes of {bits} bits in groups of {group or 'a row'} in "
            f"{gate.name('weight_packed')}; expected 4 bits in groups of 32, 64 or 128 or symmetric 8 bits"
        )
    return CompressedTensors(Int4(group, asymmetric, scale.dtype, act_order))


def _shape(module: Module) -> tuple[int, int]:
    shape = module.shaped("weight_shape", (2,), torch.int64, torch.int32)
    rows, cols = (int(size) for size in shape)
    if rows <= 0 or cols <= 0:
        raise InputError(
            f"cannot read the {module.title}: got {module.name('weight_shape')} = {[rows, cols]}; expected the weight's shape"
        )
    return rows, cols
