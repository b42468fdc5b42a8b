"""GPTQ checkpoints of AutoGPTQ and GPTQModel with 4 bits.

A matrix is `qweight` int32 [K/8, N] (nibble i of word w is the code of column 8w + i), `qzeros` int32 [K/G, N/8] (nibble i
of word w is the zero point of row 8w + i, less one where `checkpoint_format` is `gptq`), `scales` [K/G, N] and `g_idx`
int32 [K], the group of each column: column k belongs to group k // G unless the columns were quantised by activation
(`desc_act`).

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

_SCALES = (torch.float16, torch.bfloat16, torch.float32)
_OFFSET = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True, slots=True)
class Gptq:
    """The codec of GPTQ experts in `format`; `offset` is what a stored zero point lacks."""

    format: Int4
    offset: int

    def matrix(self, module: Module) -> Matrix:
        """See `Codec.matrix`."""
        module.only(("qweight", "qzeros", "scales", "g_idx"))
        fmt = self.format
        words = module.matrix("qweight", torch.int32)
        cols, rows = 8 * words.shape[0], words.shape[1]
        scale = module.shaped("scales", (cols // fmt.group, rows), fmt.scale_dtype)
        zero_NG = self._zeros(module, rows, cols // fmt.group)
        codes_NK = nibbles(bytes_of(words.T))
        order = column_order(module, "g_idx", cols, fmt.group) if "g_idx" in module.tensors or fmt.act_order else None
        if order is not None and fmt.act_order:
            codes_NK = codes_NK.index_select(1, order)
        elif order is not None and not torch.equal(order, torch.arange(cols, dtype=torch.int32)):
            raise InputError(
                f"cannot read the {module.title}: got columns out of order in {module.name('g_idx')} and desc_act false in the "
                f"config; expected group k // {fmt.group} for column k; set desc_act to true if that is how it was quantised"
            )
        return Matrix(fmt.store(codes_NK, scale.T, zero_NG), rows, cols, order if fmt.act_order else None)

    def _zeros(self, module: Module, rows: int, groups: int) -> torch.Tensor | None:
        stored = nibbles(bytes_of(module.shaped("qzeros", (groups, rows // 8), torch.int32))).T
        if self.offset and self.format.asymmetric and bool((stored == 15).any()):
            raise InputError(
                f"cannot read the {module.title}: got a stored zero point of 15 in {module.name('qzeros')}, which readers of "
                "checkpoint_format gptq take for 0 or for 16; expected 0 to 14; convert the checkpoint to gptq_v2"
            )
        if self.format.asymmetric:
            return stored + self.offset
        if bool((stored + self.offset != 8).any()):
            raise InputError(
                f"cannot read the {module.title}: got zero points other than 8 in {module.name('qzeros')} and sym true in the "
                "config; expected 8 everywhere; set sym to false, or checkpoint_format to what it is (gptq or gptq_v2)"
            )
        return None


def gptq(settings: Mapping[str, Any], first: Modules) -> Gptq:
    """The codec of a GPTQ checkpoint; `InputError` for other widths, groups and layouts than rgpu can hold."""
    first[0].unstacked("gptq")
    bits, group = settings.get("bits"), settings.get("group_size")
    layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if bits != 4 or layout not in _OFFSET or not isinstance(group, int):
        raise InputError(
            f"cannot read a GPTQ checkpoint: got bits {bits}, group_size {group} and checkpoint_format {layout!r}; expected 4 "
            f"bits, groups of 32, 64 or 128 and one of {', '.join(_OFFSET)}"
        )
    scale = first[0].matrix("scales", *_SCALES)
    asymmetric, act_order = not settings.get("sym", True), bool(settings.get("desc_act", False))
    return Gptq(Int4(group, asymmetric, scale.dtype, act_order), _OFFSET[layout])
