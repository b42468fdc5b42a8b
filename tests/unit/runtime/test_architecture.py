"""Models that cannot run say so in one line."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.session import OffloadSession
from tests.live_models import EXPERTS, TOP_K, Case

SMALL = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip


def test_layers_experts_and_top_k(cases: dict[str, Case]) -> None:
    for case in cases.values():
        found = read_architecture(case.folder)
        assert (found.layer_ids, found.experts, found.top_k) == ((0, 1, 2), EXPERTS, TOP_K)


def test_missing_folder_and_missing_config(tmp_path: Path, cases: dict[str, Case]) -> None:
    with pytest.raises(InputError, match="no model at"):
        read_architecture(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes((cases["olmoe"].folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="config.json"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(InputError) as raised:
        read_architecture(tmp_path)
    assert "\n" not in str(raised.value)


def test_dense_model(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no Mixture-of-Experts"):
        read_architecture(tmp_path)


def test_config_of_another_model(tmp_path: Path, cases: dict[str, Case], cache: Path) -> None:
    folder = cases["qwen3_moe"].folder
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"moe_intermediate_size": 24}))
    with pytest.raises(InputError, match="config of one model"):
        OffloadSession.open(
            tmp_path, lambda shape: Controller(Lru(), shape, PoolConfig("layer", 2)), dtype=torch.float32, cache=cache
        )
