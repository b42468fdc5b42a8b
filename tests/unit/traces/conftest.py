"""Small traces and models shared by the tests of traces."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rgpu.traces.trace import Trace, TraceHeader


def build_trace(
    seed: int = 0, lengths: tuple[int, ...] = (5, 1, 7), layers: int = 3, top_k: int = 2, experts: int = 8
) -> Trace:
    """A random valid trace with every array."""
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    ids = rng.permuted(np.broadcast_to(np.arange(experts), (count, layers, experts)), axis=2)[:, :, :top_k]
    header = TraceHeader(
        model="toy", num_experts=experts, top_k=top_k, layer_ids=list(range(1, layers + 1)),
        expert_bytes=[100] * layers,
        sequences=[{"domain": "prose", "document": f"d{i}"} for i in range(len(lengths))],
    )  # fmt: skip
    return Trace(
        header=header,
        expert_ids=ids.astype(np.uint8 if experts <= 255 else np.uint16),
        seq_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        positions=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        passes=np.arange(count, dtype=np.int32),
        weights=rng.random((count, layers, top_k)).astype(np.float16),
        phase=np.ones(count, np.uint8),
        token_ids=rng.integers(0, 99, count).astype(np.int32),
        hidden=rng.standard_normal((count, layers, 6)).astype(np.float16),
        router_logits=rng.standard_normal((count, layers, experts)).astype(np.float16),
        pre_attention=rng.standard_normal((count, layers, 6)).astype(np.float16),
    )


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
    return build_trace


def build_model(kind: str, **changes: Any) -> Any:
    """A tiny random model of an architecture, in evaluation mode."""
    import torch
    import transformers as t

    torch.set_num_threads(1)
    torch.manual_seed(0)
    common = {
        "vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "Qwen3Moe": {"head_dim": 8, "intermediate_size": 24, "moe_intermediate_size": 8, "num_experts": 8,
                     "mlp_only_layers": [1]},
        "Olmoe": {"intermediate_size": 8, "num_experts": 8},
        "Mixtral": {"intermediate_size": 8, "num_local_experts": 4},
        "GptOss": {"head_dim": 8, "intermediate_size": 8, "num_local_experts": 6, "sliding_window": 8,
                   "rope_parameters": None},
        "DeepseekV3": {
            "intermediate_size": 24, "moe_intermediate_size": 8, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
            "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4, "v_head_dim": 4,
        },
    }  # fmt: skip
    config = getattr(t, f"{kind}Config")(**{**common, **own[kind], **changes})
    model = getattr(t, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("router.weight", "gate.weight", "e_score_correction_bias")):
                tensor.normal_()  # zeros at birth, which routes everything to the same experts
    return model


@pytest.fixture
def make_model() -> Callable[..., Any]:
    return build_model
