from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import InputError, TraceError
from rgpu.predictors.hidden import scaled
from rgpu.predictors.pre_attention import TINY, EnteringRows, PreAttention
from rgpu.predictors.training_scores import pairwise_margin
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace, save_trace
from rgpu.traces.trace import Trace
from tests.predicting import HIDDEN, LAYERS, learnable_trace, recall_at_k, write_whole_checkpoint


@pytest.fixture(scope="module")
def trace() -> Trace:
    return learnable_trace(sequences=12, tokens=60, logits=True)


@pytest.mark.parametrize("options", [{}, {"loss": "listwise", "lr": 0.005}, {"epochs": 0}], ids=str)
def test_learns_what_enters_the_next_layer(trace: Trace, options: dict[str, Any]) -> None:
    parts = split(trace)
    predictor = PreAttention(batch=64, **options).fit(trace, parts)
    recall = recall_at_k(predictor, trace.select(parts.scored))
    assert recall[1] > 0.75 and recall[1] > recall[2] > 0.6


def test_it_reads_nothing_but_what_enters(trace: Trace) -> None:
    bare = replace(trace, hidden=None, router_logits=None, weights=None, token_ids=None)
    parts = split(bare)
    predictor = PreAttention(batch=64).fit(bare, parts)
    assert predictor.schema_.hidden == HIDDEN
    assert recall_at_k(predictor, bare.select(parts.scored))[1] > 0.7
    assert trace.hidden is not None
    with pytest.raises(TraceError, match="predictor pre_attention needs the array 'pre_attention'.*pre_attention=true"):
        PreAttention().fit(replace(trace, pre_attention=None))


def test_the_routers_are_a_start(tmp_path: Path, trace: Trace) -> None:
    short, held = learnable_trace(sequences=4, tokens=12, logits=True), learnable_trace(seed=1)
    model = write_whole_checkpoint(tmp_path / "model")
    started, bare = (recall_at_k(PreAttention(model=m).fit(short), held)[1] for m in (model, None))
    assert started > bare
    with pytest.raises(InputError, match="set predictor.model"):
        PreAttention(model=model).fit(replace(short, pre_attention=short.pre_attention[:, :, 1:], hidden=None))  # type: ignore[index]


def test_the_size_of_a_state_does_not_matter(trace: Trace) -> None:
    predictor = PreAttention(epochs=0).fit(trace)
    doubled: Any = replace(trace, pre_attention=trace.pre_attention * np.float16(2))  # type: ignore[operator]
    rows = np.arange(50)
    for layer in range(LAYERS):
        one, two = (predictor.predict_trace(t, layer, rows, rows == 0) for t in (trace, doubled))
        assert np.allclose(one, two, atol=1e-4)


def test_scaling_is_the_same_for_a_row_alone_and_in_training() -> None:
    x_ND = np.random.default_rng(0).normal(size=(7, 300)).astype(np.float32) * 30
    found = scaled(x_ND, TINY)
    assert np.allclose((found.astype(np.float64) ** 2).mean(1), 1, atol=1e-5)
    assert all(
        np.array_equal(scaled(x_ND[n : n + 1], TINY)[0].view(np.int32), found[n].view(np.int32)) for n in range(7)
    )
    assert scaled(x_ND[:0], TINY).shape == (0, 300) and not scaled(np.zeros((1, 4)), TINY).any()
    stored = x_ND.reshape(7, 3, 100).astype(np.float16)
    trained = EnteringRows(stored)(torch.tensor([5, 2]))
    expected = [scaled(stored[[5, 2], layer], TINY) for layer in (1, 2, 2)]
    assert np.allclose(trained.numpy(), np.stack(expected), atol=1e-6)


def test_training_from_disk_is_training_from_memory(tmp_path: Path) -> None:
    path = save_trace(learnable_trace(), tmp_path / "t.safetensors", shard_bytes=4000)
    whole, streamed = load_trace(path), load_trace(path, hidden=False, pre_attention=True, stream=True)
    first, second = (PreAttention(epochs=2).fit(t) for t in (whole, streamed))
    assert all(np.array_equal(first.tensors_[name], second.tensors_[name]) for name in first.tensors_)


def test_pairs_are_a_margin_apart() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5])
    ids, valid = torch.tensor([2, 0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, dtype=torch.bool)
    found = pairwise_margin(logits.view(1, 1, 1, 4), ids, valid, margin=1.0)
    assert torch.allclose(found, torch.tensor((0 + 0 + 0 + 1.2) / 4))
    assert pairwise_margin(logits.view(1, 1, 1, 4), ids, ~valid, margin=1.0) == 0
    everyone = torch.arange(4).view(1, 1, 1, 4)
    assert pairwise_margin(logits.view(1, 1, 1, 4), everyone, valid, margin=1.0) == 0


@pytest.mark.parametrize(("bad", "said"), [({"loss": "other"}, "got loss 'other'"), ({"margin": 0}, "got margin 0")])
def test_bad_parameters(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PreAttention(**bad).fit(learnable_trace())
