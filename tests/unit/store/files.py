"""A store file without a checkpoint: experts whose bytes a test can foretell."""

from pathlib import Path

import numpy as np
import torch

from rgpu.store.header import VERSION, write_header
from rgpu.store.layout import ExpertLayout, described
from rgpu.types import ExpertKey

LAYERS, EXPERTS = 2, 5
SMALL = ExpertLayout(12, 20, torch.float32)  # 3,008 bytes apart: no expert but the first begins at a block of the disk
BLOCKS = ExpertLayout(64, 1024, torch.bfloat16)  # 96 blocks of 4096 bytes
KEYS = [ExpertKey(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]


def pattern(key: ExpertKey, layout: ExpertLayout) -> np.ndarray:
    """uint8 [nbytes]."""
    made = np.random.default_rng(key.layer * EXPERTS + key.expert).integers(0, 256, layout.nbytes, np.uint8)
    return made


def write_store(path: Path, layout: ExpertLayout = SMALL, change: int = 0) -> Path:
    """A complete store; `change` is added to every byte of every expert."""
    total = 4096 + len(KEYS) * layout.stride
    header = {
        "version": VERSION, "layer_ids": list(range(LAYERS)), "experts": EXPERTS, "layout": described(layout),
        "expert_bytes": layout.payload_bytes, "stride": layout.stride, "source": "made", "file_bytes": total,
    }  # fmt: skip
    rows = np.zeros((len(KEYS), layout.stride), np.uint8)
    for row, key in zip(rows, KEYS, strict=True):
        row[: layout.nbytes] = pattern(key, layout) + np.uint8(change)
    path.write_bytes(write_header(header) + rows.tobytes())
    return path
