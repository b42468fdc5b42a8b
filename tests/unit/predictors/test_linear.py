from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from rgpu.errors import InputError
from rgpu.predictors import descent
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.linear import Linear
from rgpu.predictors.linear_data import Whitening
from rgpu.predictors.training_rows import READ, READ_BYTES, HiddenRows, Rows, at_once
from rgpu.predictors.training_scores import plackett_luce
from rgpu.replay.prediction import evaluate
from rgpu.traces.split import split
from rgpu.traces.trace import PADDING, Trace
from tests.predicting import EXPERTS, HIDDEN, LAYERS, TOP_K, learnable_trace, write_checkpoint


def recall(predictor: Linear, trace: Trace, horizon: int) -> float:
    rows = evaluate(predictor, trace)
    return float(
        np.mean([r["value"] for r in rows if (r["metric"], r["horizon"], r["width"]) == ("recall", horizon, 2)])
    )


@pytest.mark.parametrize("logits", [False, True])
def test_learns_what_hidden_states_tell(logits: bool) -> None:
    trace = learnable_trace(sequences=16, tokens=60, logits=logits)
    parts = split(trace)
    predictor = Linear(batch=64).fit(trace, parts)
    held = trace.select(parts.scored)
    assert recall(predictor, held, 1) > 0.72
    assert recall(predictor, held, 1) > recall(predictor, held, 3) > 0.5
    assert recall(predictor, held, 0) > 0.45


def test_routers_of_the_model_do_what_recorded_logits_do(tmp_path: Path) -> None:
    with_logits = learnable_trace(sequences=6, tokens=40, logits=True)
    model = str(write_checkpoint(tmp_path))
    recorded = Linear(epochs=0).fit(with_logits)
    computed = Linear(model=model, epochs=0).fit(replace(with_logits, router_logits=None))
    rows = np.arange(with_logits.tokens)
    for layer in range(LAYERS):
        pair = [p.predict_trace(with_logits, layer, rows, rows == 0) for p in (recorded, computed)]
        assert np.abs(pair[0] - pair[1]).mean() < 0.01
    other = learnable_trace()
    assert other.hidden is not None
    with pytest.raises(InputError, match="set predictor.model"):
        Linear(model=model).fit(replace(other, hidden=other.hidden[:, :, 1:]))


def test_a_short_trace_falls_back_on_gate_lookahead(tmp_path: Path) -> None:
    short, held = learnable_trace(sequences=4, tokens=16), learnable_trace(seed=1, sequences=8)
    gate = GateLookahead(str(write_checkpoint(tmp_path))).fit(short)
    probe = Linear(model=gate.model).fit(short)
    for horizon in (1, 2, 3):
        assert recall(probe, held, horizon) > recall(gate, held, horizon) - 0.05


def test_whitening_is_undone_by_its_inverse() -> None:
    hidden_NLD = np.random.default_rng(0).normal(size=(50, 2, 6)).astype(np.float32) * 3 + 1
    hidden, fit, rows = torch.from_numpy(hidden_NLD).transpose(0, 1), torch.arange(40), torch.arange(50)
    white = Whitening(HiddenRows(hidden_NLD), fit, rows, 1 << 20)
    inside = white.inputs(fit)
    assert torch.allclose(inside.transpose(1, 2) @ inside / 40, torch.eye(6).expand(2, 6, 6), atol=1e-2)
    weight_DE = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    found = white.inputs(rows)[1] @ white.whitened(1, weight_DE)
    assert torch.allclose(found, (hidden[1] - white.mean_L1D[1]) @ weight_DE, atol=1e-4)


def test_ridge_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    x_ND = (rng.normal(size=(40, 6)) * np.array([3, 2, 1, 1, 0.5, 0.1])).astype(np.float32)
    y_NE = (x_ND @ rng.normal(size=(6, 2)) + rng.normal(size=(40, 2))).astype(np.float32)
    white = Whitening(HiddenRows(x_ND[:, None]), torch.arange(40), torch.arange(40), 1 << 20)
    crossed = white.inputs(torch.arange(40)).transpose(1, 2) @ torch.from_numpy(y_NE - y_NE.mean(0)) / 40
    found = (white.matrix_LDD @ white.ridge(crossed, 0.3))[0]
    penalty = 0.3 * 40 * x_ND.var(0).mean()
    assert np.allclose(found.T.numpy(), Ridge(alpha=penalty).fit(x_ND, y_NE).coef_, atol=1e-3)


def test_forecasts_are_calibrated() -> None:
    trace = learnable_trace(sequences=16, tokens=60, logits=True)
    parts = split(trace)
    predictor, held = Linear().fit(trace, parts), trace.select(parts.scored)
    rows = np.arange(held.tokens)
    chance = predictor.predict_trace(held, 0, rows, rows == 0)[:, 0]
    routed = (held.expert_ids[:, 1, :, None] == np.arange(EXPERTS)).any(1)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (chance >= low) & (chance < low + 0.25)
        assert abs(chance[inside].mean() - routed[inside].mean()) < 0.1


class Killed(Exception):
    pass


def test_killed_training_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, checkpoint = learnable_trace(), tmp_path / "state.safetensors"
    whole = Linear(epochs=4, patience=9).fit(trace, checkpoint=tmp_path / "other.safetensors")
    keep = descent._keep

    def keep_then_die(path: Any, key: str, state: Any, curve: list[Any], stale: int) -> None:
        keep(path, key, state, curve, stale)
        if len(curve) == 3:
            raise Killed

    monkeypatch.setattr(descent, "_keep", keep_then_die)
    with pytest.raises(Killed):
        Linear(epochs=4, patience=9).fit(trace, checkpoint=checkpoint)
    epochs: list[int] = []
    monkeypatch.setattr(descent, "_keep", lambda path, key, state, curve, stale: epochs.append(curve[-1]["epoch"]))
    resumed = Linear(epochs=4, patience=9).fit(trace, checkpoint=checkpoint)
    assert epochs == [3, 4]
    assert all(np.array_equal(whole.tensors_[n], resumed.tensors_[n]) for n in whole.tensors_)
    assert [row["loss"] for row in whole.curve_] == [row["loss"] for row in resumed.curve_]


def test_state_of_another_training_is_not_used(tmp_path: Path) -> None:
    trace, checkpoint = learnable_trace(), tmp_path / "state.safetensors"
    Linear(epochs=2).fit(learnable_trace(seed=5), checkpoint=checkpoint)
    beside = Linear(epochs=2).fit(trace, checkpoint=checkpoint)
    checkpoint.write_bytes(b"broken")
    broken = Linear(epochs=2).fit(trace, checkpoint=checkpoint)
    alone = Linear(epochs=2).fit(trace)
    for name, tensor in alone.tensors_.items():
        assert np.array_equal(tensor, beside.tensors_[name])
        assert np.array_equal(tensor, broken.tensors_[name])


def test_targets_stay_in_sequence_and_in_the_model() -> None:
    trace = learnable_trace(sequences=2, tokens=10)
    rows = Rows(trace, horizon=2)
    ids, valid = rows.targets(torch.arange(20))
    assert torch.equal(ids[0, 3, 0], torch.from_numpy(trace.expert_ids[3, 1].astype(np.int64)))
    assert torch.equal(ids[1, 3, 1], torch.from_numpy(trace.expert_ids[3, 3].astype(np.int64)))
    assert torch.equal(ids[2, 3, 2], torch.from_numpy(trace.expert_ids[4, 2].astype(np.int64)))
    assert valid[:, :, 0].any(1).tolist() == [True, True, True, False]
    assert valid[:, :, 1].any(1).tolist() == [True, True, False, False]
    assert torch.nonzero(~valid[0, :, 2]).ravel().tolist() == [9, 19]


def test_padding_and_unrecorded_targets_are_left_out() -> None:
    trace = learnable_trace(sequences=1, tokens=10)
    assert trace.phase is not None
    phase, ids = trace.phase.copy(), trace.expert_ids.copy()
    phase[5], ids[7, 1, 1] = PADDING, trace.missing
    rows = Rows(replace(trace, phase=phase, expert_ids=ids), horizon=1)
    _, valid = rows.targets(torch.arange(10))
    assert rows.real.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert torch.nonzero(~valid[0, :, 0]).ravel().tolist() == [7]
    assert torch.nonzero(~valid[1, :, 1]).ravel().tolist() == [4, 6, 9]


def test_plackett_luce_is_the_chance_of_the_ranked_draw() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5])
    p = logits.softmax(0)
    expected = -torch.log(p[2] * p[0] / (1 - p[2]))
    found = plackett_luce(
        logits.view(1, 1, 1, 4), torch.tensor([2, 0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, dtype=torch.bool)
    )
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("sequences", [1, 2])
def test_few_documents_still_train(sequences: int) -> None:
    trace = learnable_trace(sequences=sequences, tokens=12)
    predictor = Linear(epochs=1, horizon=9).fit(trace)
    assert predictor.tensors_["weight_LHDE"].shape == (LAYERS, 10, HIDDEN, EXPERTS)
    assert np.isfinite(predictor.tensors_["weight_LHDE"]).all()


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"batch": 0}, {"lr": 0}, {"validation": 1.0}, {"patience": 0}])
def test_bad_parameters(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"got {next(iter(bad))}"):
        Linear(**bad).fit(learnable_trace())


def test_every_expert_chosen_is_certain() -> None:
    trace = learnable_trace()
    ids = np.tile(np.arange(TOP_K, dtype=np.uint8), (trace.tokens, LAYERS, 1))
    trace.header.num_experts = TOP_K
    predictor = Linear(epochs=1).fit(replace(trace, expert_ids=ids))
    assert (predictor.predict_trace(replace(trace, expert_ids=ids), 0, np.arange(3), np.arange(3) == 0) == 1).all()


def test_rows_read_together_are_bounded_in_bytes() -> None:
    large = HiddenRows(np.broadcast_to(np.float16(0), (4096, 48, 2048)))
    assert large.step * 48 * 2048 * 4 <= READ_BYTES < (large.step + 1) * 48 * 2048 * 4
    assert HiddenRows(np.broadcast_to(np.float16(0), (4096, 48, 2048)), last=True).step == READ
    assert HiddenRows(np.zeros((1, 2, 3))).step == READ and at_once(2 * READ_BYTES) == 1
    rows = Rows(learnable_trace(sequences=1, tokens=4), horizon=2)
    assert rows.together(HIDDEN) == READ and 1 <= rows.together(READ_BYTES) < 2


def test_the_last_layer_alone_is_read_by_rows() -> None:
    hidden_NLD = np.random.default_rng(0).normal(size=(9, 3, 4)).astype(np.float16)
    found = HiddenRows(hidden_NLD, last=True)(torch.tensor([7, 2]))
    assert np.array_equal(found.numpy(), hidden_NLD[[7, 2], -1:].transpose(1, 0, 2))
