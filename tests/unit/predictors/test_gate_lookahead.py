import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rgpu.errors import InputError
from rgpu.predictors.gate_lookahead import GateLookahead, read_routers
from rgpu.predictors.hidden import top_k_share
from rgpu.replay.prediction import evaluate
from rgpu.replay.stream import routing_events
from rgpu.types import MoEShape
from tests.predicting import EXPERTS, HIDDEN, LAYERS, TOP_K, learnable_trace, routers, write_checkpoint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shards", [False, True])
def test_reads_routers_in_layer_order(tmp_path: Path, dtype: torch.dtype, shards: bool) -> None:
    weight_LED, bias_LE = read_routers(write_checkpoint(tmp_path, dtype, shards))
    assert np.array_equal(weight_LED, routers())
    assert not bias_LE.any()


def test_layers_are_ordered_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = {f"model.layers.{i}.block_sparse_moe.gate.weight": torch.full((3, 2), float(i)) for i in range(11)}
    save_file(tensors | {"model.layers.2.mlp.router.bias": torch.ones(3)}, tmp_path / "model.safetensors")
    assert read_routers(tmp_path)[0][:, 0, 0].tolist() == list(range(11))


def test_router_bias_is_read(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.mlp.router.weight": torch.ones(3, 2),
        "model.layers.0.mlp.router.bias": torch.arange(3.0),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert read_routers(tmp_path)[1].tolist() == [[0, 1, 2]]


def test_is_the_next_router_on_this_hidden(tmp_path: Path) -> None:
    trace = learnable_trace()
    predictor = GateLookahead(str(write_checkpoint(tmp_path)), horizon=2).fit(trace)
    events = list(routing_events(trace))
    event = events[LAYERS * 3 + 1]
    predictor.observe(event)
    probs_HE = predictor.predict().probs_HE
    assert event.hidden_TD is not None
    logits = routers()[[2, 3, 1]] @ event.hidden_TD[-1]
    assert np.array_equal(np.argsort(-probs_HE, axis=1), np.argsort(-logits, axis=1))
    assert np.array_equal(np.sort(np.argsort(-probs_HE[2])[:TOP_K]), np.sort(event.experts_TK[-1]))


def test_fits_from_the_checkpoint_alone(tmp_path: Path) -> None:
    trace = learnable_trace()
    model = write_checkpoint(tmp_path / "toy")
    alone, fitted = GateLookahead(model).fit(), GateLookahead(model).fit(trace)
    alone.check(trace).check(MoEShape(LAYERS, EXPERTS, TOP_K, HIDDEN))
    assert [r["value"] for r in evaluate(alone, trace)] == [r["value"] for r in evaluate(fitted, trace)]


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    trace = learnable_trace()
    assert trace.hidden is not None
    with pytest.raises(InputError, match=r"4 layers x 8 experts x 12, the trace of toy 4 x 8 x 11"):
        GateLookahead(write_checkpoint(tmp_path)).fit(replace(trace, hidden=trace.hidden[:, :, 1:]))


def test_bad_checkpoints_are_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="expected a transformers checkpoint directory"):
            read_routers(folder)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(InputError, match="cannot read"):
        read_routers(tmp_path)
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="holds no router"):
        read_routers(tmp_path)
    model = write_checkpoint(tmp_path / "biased")
    tensors = load_file(model / "model.safetensors") | {
        "model.layers.0.mlp.gate.e_score_correction_bias": torch.ones(8)
    }
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match="selection bias"):
        read_routers(model)
    sharded = write_checkpoint(tmp_path / "sharded", shards=True)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    (sharded / index["weight_map"]["model.layers.1.mlp.gate.weight"]).unlink()
    with pytest.raises(InputError, match="complete checkpoint"):
        read_routers(sharded)


def test_shares_above_one_kth_keep_their_order() -> None:
    logits = np.array([[[8.0, 7.5, 7.0, 0.0, -1.0, -1.0, -1.0, -2.0]]], np.float32)
    probs_E = top_k_share(logits, 4)[0, 0]
    assert (np.diff(probs_E[:5]) < 0).all()
    assert probs_E.max() <= 1
    assert abs(float(probs_E[2]) - 4 * np.exp(7.0) / np.exp(logits).sum()) < 1e-3
