"""What a cache that grows by blocks makes torch reserve on a GPU, beside what plans count for it."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from rgpu.runtime.block_cache import BLOCK, block_cache, grow

NAME = "a cache that grows by blocks: torch reserves no more than plans count"
BATCH, BLOCKS = 4, 8
SHAPE = {
    "num_hidden_layers": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 128,
}  # Qwen3-30B-A3B's


def grown(device: str = "cuda", shape: dict[str, int] = SHAPE) -> tuple[bool, str]:
    """(whether it did not, what was reserved): caps are about reserved memory, and a freed layer is too short for the next."""
    config = CONFIG_MAPPING["qwen3_moe"](hidden_size=64, **shape)
    cache: Any = block_cache(SimpleNamespace(config=config), BLOCK, BLOCKS * BLOCK)  # type: ignore[arg-type]
    heads, layers = shape["num_key_value_heads"], shape["num_hidden_layers"]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    token_BHTD = torch.zeros(BATCH, heads, 1, shape["head_dim"], dtype=torch.bfloat16, device=device)
    for layer in range(layers):
        cache.update(token_BHTD, token_BHTD, layer)
    for block in range(2, BLOCKS + 1):
        grow(cache, block * BLOCK)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    planned = (held + held // layers) * 9 // 8  # one layer twice while it grows, 1/8 more for the allocator
    most, after = (get() - before for get in (torch.cuda.max_memory_reserved, torch.cuda.memory_reserved))
    found = (
        f"{size / 2**20:.0f} MiB {what}" for size, what in ((held, "held"), (planned, "planned"), (most, "at most"))
    )
    return most <= planned, f"{', '.join(found)}, {after / 2**20:.0f} MiB at the end"
