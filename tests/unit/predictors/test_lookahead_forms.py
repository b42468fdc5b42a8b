from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rgpu.errors import InputError
from rgpu.predictors.base import load_predictor
from rgpu.predictors.checkpoint_parts import LayerParts
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.hidden import linear_reference
from rgpu.predictors.lookahead_forms import FORMS, FROM_TRACE, gated, routed_mean, shared_output
from rgpu.replay.prediction import evaluate, speaking_passes
from rgpu.replay.stream import routing_events
from rgpu.traces.trace import Trace
from tests.predicting import EXPERTS, HIDDEN, LAYERS, learnable_trace, routers, write_checkpoint, write_whole_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_whole_checkpoint(tmp_path_factory.mktemp("whole"), shared=True))


def live(predictor: GateLookahead, trace: Trace, layer: int) -> np.ndarray:
    found = []
    for event in routing_events(trace):
        predictor.observe(event)
        if event.layer == layer:
            found.append(predictor.predict().probs_HE)
    return np.stack(found)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_repeats_live_and_from_its_file(form: str, model: str, tmp_path: Path) -> None:
    trace = learnable_trace(sequences=2)
    predictor = GateLookahead(model, form=form).fit(trace)
    predictor.save(tmp_path / "p")
    loaded = load_predictor(tmp_path / "p", expect=trace)
    rows, sequence = speaking_passes(trace)
    for layer in range(LAYERS):
        batch = predictor.predict_trace(trace, layer, rows, np.r_[True, sequence[1:] != sequence[:-1]])
        assert np.array_equal(batch, live(predictor, trace, layer))
        assert np.array_equal(batch, live(loaded, trace, layer))
    assert predictor.learns == (form in FROM_TRACE)


def test_next_norm_swaps_the_weights_of_the_norms(model: str) -> None:
    trace = learnable_trace()
    norm_LD = LayerParts.of(model).norms("test")
    weight_DM, _ = GateLookahead(model, form="next_norm").fit(trace)._map(1)
    wanted = routers()[2] * norm_LD[2] / norm_LD[1]
    assert np.allclose(weight_DM.T[:EXPERTS], wanted) and np.allclose(weight_DM.T[-EXPERTS:], routers()[1])
    alone = GateLookahead(model, form="next_norm").fit()
    assert np.array_equal(alone._map(1)[0], weight_DM)


def whole_model_trace(model: str, tokens: int = 400) -> Trace:
    """Router inputs of a model without attention: the normed stream of the layer before plus its routed experts."""
    parts, like = LayerParts.of(model), learnable_trace(sequences=4, tokens=tokens // 4)
    norm_LD, rng = parts.norms("test"), np.random.default_rng(3)
    stream_ND = rng.normal(size=(tokens, HIDDEN)) * 2
    hidden_NLD, ids_NLK = np.empty((tokens, LAYERS, HIDDEN), np.float32), np.empty((tokens, LAYERS, 2), np.int64)
    weights_NLK = np.empty((tokens, LAYERS, 2), np.float32)
    for layer in range(LAYERS):
        normed_ND = stream_ND / np.sqrt((stream_ND**2).mean(1, keepdims=True))
        x_ND = (normed_ND * norm_LD[layer]).astype(np.float16).astype(np.float32)
        logits_NE = x_ND @ routers()[layer].T
        ids_NK = np.argsort(-logits_NE, 1, kind="stable")[:, :2]
        chance_NK = np.exp(np.take_along_axis(logits_NE, ids_NK, 1))
        weights_NK = chance_NK / chance_NK.sum(1, keepdims=True)
        hidden_NLD[:, layer], ids_NLK[:, layer], weights_NLK[:, layer] = x_ND, ids_NK, weights_NK
        for expert in range(EXPERTS):
            y_ND = gated(x_ND, *parts.gated(layer, f"mlp.experts.{expert}", "test"))
            stream_ND = stream_ND + y_ND * (weights_NK * (ids_NK == expert)).sum(1, keepdims=True)
    return replace(
        like, hidden=hidden_NLD.astype(np.float16), expert_ids=ids_NLK.astype(np.uint8),
        weights=weights_NLK.astype(np.float16),
    )  # fmt: skip


def test_what_experts_add_on_average_helps_where_they_add_it(model: str) -> None:
    trace = whole_model_trace(model)
    recall = {}
    for form in ("raw", "next_norm", "quasi_hidden", "quasi_hidden_routed"):
        rows = evaluate(GateLookahead(model, form=form).fit(trace), trace)
        recall[form] = np.mean(
            [r["value"] for r in rows if (r["metric"], r["horizon"], r["width"]) == ("recall", 1, 2)]
        )
    assert recall["next_norm"] > recall["raw"]
    assert recall["quasi_hidden_routed"] > recall["next_norm"]
    assert recall["quasi_hidden_routed"] > recall["quasi_hidden"] - 0.01


def test_shared_output_is_that_of_torch(model: str) -> None:
    parts = LayerParts.of(model)
    gate, up, down = (torch.from_numpy(w) for w in parts.gated(0, "mlp.shared_expert", "test"))
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(0))
    chance = torch.linspace(-1, 1, HIDDEN)
    wanted = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def ours(chance_D: np.ndarray) -> np.ndarray:
        weights = [np.ascontiguousarray(part.T.numpy()) for part in (gate, up, down)]
        nothing = np.zeros(6, np.float32), np.zeros(HIDDEN, np.float32)
        return shared_output(
            x.numpy(), weights[0], weights[1], weights[2], np.stack([chance_D] * 2, 1), nothing, linear_reference
        )

    assert np.allclose(ours(np.full(HIDDEN, np.nan, np.float32)), wanted.numpy(), atol=1e-5)
    gated_ND = wanted * torch.sigmoid(x @ chance)[:, None]
    assert np.allclose(ours(chance.numpy()), gated_ND.numpy(), atol=1e-5)


def test_routed_mean_leaves_out_what_was_not_routed() -> None:
    mean_ED = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = routed_mean(mean_ED, np.array([[0, 2], [-1, 1], [255, 2]]), np.full((3, 2), 0.5, np.float32))
    assert np.array_equal(found, [[2, 3], [1, 1.5], [2, 2.5]])
    assert np.array_equal(routed_mean(mean_ED, np.array([[1, 2]]), None), [[3, 4]])


def test_norms_that_count_from_one(model: str, tmp_path: Path) -> None:
    folder = write_whole_checkpoint(tmp_path, shared=True)
    (folder / "config.json").write_text('{"num_experts_per_tok": 2, "model_type": "qwen3_next"}')
    assert np.array_equal(LayerParts.of(folder).norms("test"), LayerParts.of(model).norms("test") + 1)


def test_what_a_form_lacks_is_named(model: str, tmp_path: Path) -> None:
    trace = learnable_trace()
    with pytest.raises(InputError, match="got form 'sideways'"):
        GateLookahead(model, form="sideways").fit(trace)
    with pytest.raises(InputError, match="got form quasi_hidden and no trace"):
        GateLookahead(model, form="quasi_hidden").fit()
    bare = str(write_checkpoint(tmp_path / "bare"))
    with pytest.raises(InputError, match="holds no model.layers.0.post_attention_layernorm.weight"):
        GateLookahead(bare, form="next_norm").fit(trace)
    plain = write_whole_checkpoint(tmp_path / "plain")
    with pytest.raises(InputError, match="has no shared experts"):
        GateLookahead(str(plain), form="two_step").fit(trace)
    (plain / "config.json").write_text('{"hidden_act": "gelu"}')
    with pytest.raises(InputError, match="has activation gelu"):
        GateLookahead(str(plain), form="quasi_hidden").fit(trace)
    tensors = load_file(plain / "model.safetensors")
    tensors["model.layers.0.post_attention_layernorm.weight"] *= 0
    save_file(tensors, plain / "model.safetensors")
    with pytest.raises(InputError, match="norm weight of 0"):
        GateLookahead(str(plain), form="next_norm").fit(trace)
