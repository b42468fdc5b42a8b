"""Tiny random MoE models on disk, prompts with left padding, and greedy generation with logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

EXPERTS, TOP_K, LAYERS = 10, 3, 3


def build(kind: str, folder: Path) -> Path:
    common: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "max_position_embeddings": 128, "eos_token_id": 1,
        "pad_token_id": 0, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "qwen3_moe":
        config = Qwen3MoeConfig(
            **common, intermediate_size=48, moe_intermediate_size=16, head_dim=8, norm_topk_prob=True
        )
        Qwen3MoeForCausalLM(config).save_pretrained(folder)
    else:
        OlmoeForCausalLM(OlmoeConfig(**common, intermediate_size=16)).save_pretrained(folder)
    return folder


@dataclass
class Case:
    """A model folder and the stock model's greedy generations by batch size: (inputs, sequences, logits)."""

    folder: Path
    stock: dict[int, tuple[dict[str, torch.Tensor], torch.Tensor, tuple[torch.Tensor, ...]]]


def prompts(batch: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(batch)
    ids = torch.randint(2, 96, (batch, 9))
    mask = torch.ones_like(ids)
    for row in range(batch):
        mask[row, : row * 2] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def generate(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return out.sequences, out.logits
