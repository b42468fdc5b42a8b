"""How checkpoints pack small codes into bytes and words, and how GPTQ names the order of its columns.

Legend: R rows, B bytes of a row, K columns, G columns of a group.
"""

import torch

from rgpu.checkpoint.module import Module
from rgpu.errors import InputError


def bytes_of(words_RW: torch.Tensor) -> torch.Tensor:
    """uint8 [R, B]: the bytes of integer words [R, W], lowest first."""
    return words_RW.contiguous().view(torch.uint8)


def nibbles(bytes_RB: torch.Tensor) -> torch.Tensor:
    """uint8 [R, 2B]: two codes of 4 bits from every byte, the low one first. int32 words thus give their lowest first."""
    return torch.stack((bytes_RB & 15, bytes_RB >> 4), -1).flatten(-2)


def nibbles_high_first(bytes_RB: torch.Tensor) -> torch.Tensor:
    """uint8 [R, 2B]: two codes of 4 bits from every byte, the high one first."""
    return torch.stack((bytes_RB >> 4, bytes_RB & 15), -1).flatten(-2)


def column_order(module: Module, suffix: str, cols: int, group: int) -> torch.Tensor:
    """int32 [K]: the columns sorted by the group that the tensor `suffix` gives each (stable), so that group g becomes
    columns g*G to g*G + G - 1. `InputError` unless every group has exactly G columns."""
    group_K = module.shaped(suffix, (cols,), torch.int32, torch.int64).long()
    groups = cols // group
    inside = bool(((group_K >= 0) & (group_K < groups)).all())
    if not inside or not bool((torch.bincount(group_K, minlength=groups) == group).all()):
        raise InputError(
            f"cannot read the {module.title}: got groups of different sizes in {module.name(suffix)}; expected {groups} groups "
            f"of {group} columns"
        )
    return torch.argsort(group_K, stable=True).int()
