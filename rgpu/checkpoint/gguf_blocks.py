"""The blocks of ggml's types, taken apart into the arrays of a storage format.

Layouts as in ggml's `ggml-common.h`; d and dmin are float16. Q4_K (144 bytes, 256 columns): d, dmin, 12 bytes of 6-bit scales
and minima, 128 bytes of nibbles, of which 32 bytes hold 64 columns: first their low nibbles, then their high ones. Q6_K (210
bytes, 256 columns): 128 bytes of low nibbles, 64 of pairs of high bits, 16 int8 scales, d. Q8_0 (34 bytes, 32 columns): d,
int8 codes. MXFP4 (17 bytes, 32 columns): e8m0, 16 bytes of nibbles, the low ones first, then the high ones (gpt-oss' own
checkpoints alternate them).

Legend: N rows, K columns, S blocks of a row, B bytes of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rgpu.quant.bf16 import Bf16
from rgpu.quant.format import QuantFormat
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.quant.q4_k import Q4K
from rgpu.quant.q6_k import Q6K
from rgpu.quant.q8_0 import Q8_0


@dataclass(frozen=True, slots=True)
class BlockType:
    """A ggml type: `block_bytes` hold `columns` numbers; `arrays` takes uint8 [N, S, B] apart for `format`."""

    name: str
    format: QuantFormat
    columns: int
    block_bytes: int
    arrays: Callable[[torch.Tensor], dict[str, torch.Tensor]]


def _halves(raw: torch.Tensor) -> torch.Tensor:
    """float16 [N, S] of two bytes a block."""
    return raw.contiguous().view(torch.float16)[..., 0]


def _q4_k(raw_NSB: torch.Tensor) -> dict[str, torch.Tensor]:
    N = raw_NSB.shape[0]
    first, second, rest = raw_NSB[..., 4:8], raw_NSB[..., 8:12], raw_NSB[..., 12:16]
    scale = torch.cat([first & 63, (rest & 15) | (first >> 6) << 4], -1)
    minimum = torch.cat([second & 63, (rest >> 4) | (second >> 6) << 4], -1)
    packed = raw_NSB[..., 16:].reshape(N, -1, 4, 32)
    codes = torch.stack((packed & 15, packed >> 4), 3)
    return Q4K().store(
        codes.reshape(N, -1), scale.reshape(N, -1), minimum.reshape(N, -1),
        _halves(raw_NSB[..., 0:2]), _halves(raw_NSB[..., 2:4]),
    )  # fmt: skip


def _q6_k(raw_NSB: torch.Tensor) -> dict[str, torch.Tensor]:
    N = raw_NSB.shape[0]
    low = raw_NSB[..., :128].reshape(N, -1, 2, 64)
    high = raw_NSB[..., 128:192].reshape(N, -1, 2, 32)
    nibbles = torch.stack((low & 15, low >> 4), 3).flatten(3)
    pairs = torch.stack([high >> shift & 3 for shift in (0, 2, 4, 6)], 3).flatten(3)
    scale = raw_NSB[..., 192:208].reshape(N, -1).view(torch.int8)
    return Q6K().store((nibbles | pairs << 4).reshape(N, -1), scale, _halves(raw_NSB[..., 208:]))


def _q8_0(raw_NSB: torch.Tensor) -> dict[str, torch.Tensor]:
    codes = raw_NSB[..., 2:].reshape(raw_NSB.shape[0], -1) ^ 128  # int8 + 128: the sign bit flips
    return Q8_0().store(codes, _halves(raw_NSB[..., :2]))


def _mxfp4(raw_NSB: torch.Tensor) -> dict[str, torch.Tensor]:
    packed = raw_NSB[..., 1:]
    return Mxfp4().store(torch.cat((packed & 15, packed >> 4), -1).flatten(1), raw_NSB[..., 0])


def _bf16(raw_NSB: torch.Tensor) -> dict[str, torch.Tensor]:
    return Bf16().store(raw_NSB.contiguous().view(torch.bfloat16).flatten(1))


BLOCK_TYPES: dict[int, BlockType] = {
    8: BlockType("Q8_0", Q8_0(), 32, 34, _q8_0),
    12: BlockType("Q4_K", Q4K(), 256, 144, _q4_k),
    14: BlockType("Q6_K", Q6K(), 256, 210, _q6_k),
    30: BlockType("BF16", Bf16(), 1, 2, _bf16),
    39: BlockType("MXFP4", Mxfp4(), 32, 17, _mxfp4),
}

_OTHERS: dict[int, Any] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip


def type_name(kind: int) -> str:
    """What ggml calls the type of number `kind`."""
    return BLOCK_TYPES[kind].name if kind in BLOCK_TYPES else str(_OTHERS.get(kind, f"number {kind}"))
