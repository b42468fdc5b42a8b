"""Tiny random MoE models on disk, prompts with left padding, and greedy generation with logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

EXPERTS, TOP_K, LAYERS = 10, 3, 3
_COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_experts_per_tok": TOP_K, "max_position_embeddings": 128, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts": EXPERTS, "moe_intermediate_size": 16, "intermediate_size": 48}
_LOCAL: dict[str, Any] = {"num_local_experts": EXPERTS, "intermediate_size": 16}
_LINEAR: dict[str, Any] = {
    "shared_expert_intermediate_size": 24, "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_group": 2, "topk_group": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 16,
    "intermediate_size": 48, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
}  # fmt: skip
_GLM = {name: _DEEPSEEK[name] for name in ("first_k_dense_replace", "moe_intermediate_size", "intermediate_size",
                                           "n_routed_experts", "n_shared_experts")}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {  # tiny configs by model type; every kind of expert that is run
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3_moe": _EXPERTS | {"head_dim": 8, "norm_topk_prob": True},
    "qwen3_next": _EXPERTS | _LINEAR,
    "qwen3_5_moe_text": _EXPERTS | _LINEAR,
    "olmoe": {"num_experts": EXPERTS, "intermediate_size": 16},
    "mixtral": _LOCAL,
    "gpt_oss": _LOCAL | {"head_dim": 8, "sliding_window": 8},
    "deepseek_v2": _DEEPSEEK | {"topk_method": "greedy"},
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": _GLM | {"head_dim": 8, "n_group": 1, "topk_group": 1},
    "phimoe": _LOCAL | {"num_experts_per_tok": 2},
    "granitemoe": _LOCAL,
    "minimax_m2": _LOCAL | {"head_dim": 8, "rotary_dim": 4},
}


def build(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **changed: Any) -> Path:
    """A tiny random model of the type on disk, in transformers' own checkpoint layout for it."""
    config = CONFIG_MAPPING[kind](**(_COMMON | FAMILIES.get(kind, {}) | changed))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
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
