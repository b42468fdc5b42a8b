"""Codes of 2, 4 or 8 bits in 16-bit words, in the one order that every kernel reads.

A row of codes is cut into blocks of eight words (16 bytes: one 128-bit load). A word holds J = 16 / bits fields, field j in
bits j*bits and up. Field j of word u of block b is the code of column b*8J + 8j + u, so that one field of eight
neighbouring words covers eight neighbouring columns: activations are read in their natural order, eight at a time.

Legend: N rows, K columns, W words of a row.
"""

import torch

from rgpu.errors import InputError

BLOCK_WORDS = 8


def block_columns(bits: int) -> int:
    """Columns that one block of eight words holds: 64, 32 or 16 for 2, 4 or 8 bits."""
    return BLOCK_WORDS * (16 // bits)


def pack_fields(codes_NK: torch.Tensor, bits: int) -> torch.Tensor:
    """int16 [N, K*bits/16] from integer codes [N, K] in [0, 2**bits). K must be a multiple of `block_columns(bits)`."""
    rows, cols = codes_NK.shape
    if cols % block_columns(bits):
        raise InputError(
            f"cannot pack {bits}-bit codes: got {cols} columns; expected a multiple of {block_columns(bits)}"
        )
    fields = 16 // bits
    codes = codes_NK.reshape(rows, -1, fields, BLOCK_WORDS).to(torch.int32)
    words = torch.zeros(rows, codes.shape[1], BLOCK_WORDS, dtype=torch.int32)
    for j in range(fields):
        words |= codes[:, :, j] << (j * bits)
    # A word with its top bit set is the negative int16 of the same bits.
    return torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16).reshape(rows, -1)


def unpack_fields(words_NW: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [N, K]: the exact inverse of `pack_fields`."""
    rows, mask = words_NW.shape[0], (1 << bits) - 1
    words = words_NW.to(torch.int32).reshape(rows, -1, 1, BLOCK_WORDS)
    shifts = torch.arange(0, 16, bits, dtype=torch.int32, device=words.device).reshape(1, 1, -1, 1)
    return ((words >> shifts) & mask).to(torch.uint8).reshape(rows, -1)
