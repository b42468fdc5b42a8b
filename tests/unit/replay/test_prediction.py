import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.predictors.previous_token import PreviousToken
from rgpu.replay import prediction
from rgpu.replay.prediction import evaluate, speaking_passes
from rgpu.replay.scores import over_layers
from rgpu.traces.trace import DECODE, PADDING, Trace, TraceHeader
from rgpu.types import RoutingEvent
from tests.predicting import EXPERTS, LAYERS, TOP_K, learnable_trace

HORIZON = 2


class Noise:
    """A predictor without `predict_trace`: repeatable random chances for each (pass since reset, layer), with ties."""

    name = "noise"

    def reset(self) -> None:
        self.passes = -1

    def observe(self, event: RoutingEvent) -> None:
        self.passes += event.layer == 0
        self.layer = event.layer

    def predict(self) -> Forecast:
        later = list(range(self.layer + 1, min(self.layer + 1 + HORIZON, LAYERS)))
        return Forecast(np.array([*later, self.layer]), np.array([0] * len(later) + [1]), self.chances(len(later) + 1))

    def chances(self, rows: int) -> np.ndarray:
        rng = np.random.default_rng((self.passes, self.layer))
        return (rng.integers(0, 16, (rows, EXPERTS)) / 16).astype(np.float32)


def by_hand(trace: Trace, layer: int, horizon: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Named and true experts as bool [n, E], gate shares [n, E] and sequences, one forecast after the other."""
    noise, named, true, share, owner = Noise(), [], [], [], []
    assert trace.weights is not None
    for s in range(trace.sequences):
        noise.reset()
        span = np.arange(trace.seq_offsets[s], trace.seq_offsets[s + 1])
        numbers = np.unique(trace.passes[span])
        last = [span[trace.passes[span] == number][-1] for number in numbers]
        for p in range(len(last)):
            noise.passes, noise.layer = p, layer - horizon
            forecast = noise.predict()
            h = len(forecast.layers) - 1 if horizon == 0 else horizon - 1
            if horizon == 0 and p + 1 == len(last):
                continue
            token = last[p + 1] if horizon == 0 else last[p]
            order = sorted(range(EXPERTS), key=lambda e: (-forecast.probs_HE[h, e], e))
            ids = trace.expert_ids[token, layer]
            named.append([e in order[:width] for e in range(EXPERTS)])
            true.append([e in ids for e in range(EXPERTS)])
            weights = np.zeros(EXPERTS)
            weights[ids] = trace.weights[token, layer]
            share.append(weights / weights.sum())
            owner.append(s)
    return np.array(named), np.array(true), np.array(share), owner


def pick(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (row,) = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    return row


@pytest.mark.parametrize("horizon", [0, 1, 2])
@pytest.mark.parametrize("width", [TOP_K, 5])
def test_against_scikit_learn(horizon: int, width: int) -> None:
    trace, layer = learnable_trace(), 2
    rows = evaluate(Noise(), trace, widths=[width, TOP_K], horizons=HORIZON)
    named, true, share, owner = by_hand(trace, layer, horizon, width)
    at = {"layer": layer, "horizon": horizon}
    recall = pick(rows, metric="recall", width=width, **at)
    assert recall["value"] == pytest.approx(recall_score(true, named, average="micro"))
    assert recall["value"] == pytest.approx(recall_score(true, named, average="samples"))
    assert recall["count"] == len(owner)
    assert recall["case"] == ("layer" if horizon else "token")
    exact = pick(rows, metric="exact", width=width, **at)["value"]
    assert exact == pytest.approx((named | ~true).all(1).mean())
    assert pick(rows, metric="mass", width=width, **at)["value"] == pytest.approx((share * named).sum(1).mean())
    if width == TOP_K:
        f1 = pick(rows, metric="f1", **at)["value"]
        assert f1 == pytest.approx(f1_score(true, named, average="macro", zero_division=0))
    for s in range(trace.sequences):
        own = np.array(owner) == s
        assert recall["numerators"][s] == (named & true)[own].sum()
        assert recall["denominators"][s] == own.sum() * TOP_K


def test_top1_is_the_first_named_and_the_routers_first() -> None:
    trace = learnable_trace()
    rows = evaluate(Noise(), trace, horizons=1)
    named, _, share, _ = by_hand(trace, 1, 1, 1)
    top1 = pick(rows, metric="top1", layer=1, horizon=1)
    assert top1["value"] == pytest.approx((named.argmax(1) == share.argmax(1)).mean(), abs=0.02)


def test_rows_cover_layers_horizons_widths() -> None:
    rows = evaluate(PreviousToken().fit(learnable_trace()), learnable_trace())
    assert {(r["layer"], r["horizon"]) for r in rows} == {
        *((target, h) for h in range(1, LAYERS) for target in range(h, LAYERS)),
        *((layer, 0) for layer in range(LAYERS)),
    }
    assert {r["width"] for r in rows if r["metric"] == "recall"} == {2, 4, 6, 8}
    wide = {"recall", "precision", "f1_micro", "accuracy", "exact", "mass", "miss_bytes"}
    assert {r["metric"] for r in rows} == wide | {"top1", "f1", "log_loss", "ece"}
    assert {r["width"] for r in rows if r["metric"] in ("log_loss", "ece")} == {None}
    tied = {"tied", "ceiling"}
    logits = learnable_trace(logits=True)
    assert tied < {r["metric"] for r in evaluate(PreviousToken().fit(logits), logits)}
    full = [r["value"] for r in rows if r["metric"] in ("recall", "exact", "mass") and r["width"] == EXPERTS]
    assert np.allclose(full, 1)


def test_width_only_helps() -> None:
    rows = evaluate(Noise(), learnable_trace(), widths=range(1, EXPERTS + 1), horizons=1)
    for metric in ("recall", "exact", "mass"):
        values = [r["value"] for r in rows if r["metric"] == metric and r["layer"] == 1 and r["horizon"] == 1]
        assert len(values) == EXPERTS
        assert (np.diff(values) >= 0).all()


def test_events_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = learnable_trace()
    predictor = PreviousToken().fit(trace)
    whole = evaluate(predictor, trace)
    monkeypatch.setattr(prediction, "CHUNK", 40)
    for other in (evaluate(predictor, trace), evaluate(predictor, trace, events=True)):
        for a, b in zip(whole, other, strict=True):
            assert a["value"] == pytest.approx(b["value"], rel=1e-12)
            assert a["numerators"] is None or np.allclose(a["numerators"], b["numerators"], rtol=1e-12, atol=0)


def test_pooled_over_layers() -> None:
    rows = evaluate(Noise(), learnable_trace(), horizons=1)
    recall = [r for r in rows if r["metric"] == "recall" and r["horizon"] == 1 and r["width"] == TOP_K]
    pooled = pick(over_layers(rows), metric="recall", horizon=1, width=TOP_K)
    assert pooled["layer"] is None
    assert pooled["value"] == pytest.approx(np.mean([r["value"] for r in recall]))
    assert pooled["denominators"].sum() == sum(r["denominators"].sum() for r in recall)


def test_unrecorded_targets_do_not_count() -> None:
    trace = learnable_trace()
    ids = trace.expert_ids.copy()
    ids[10, 2, 0] = trace.missing
    predictor = PreviousToken().fit(trace)
    full, holed = (evaluate(predictor, replace(trace, expert_ids=i)) for i in (trace.expert_ids, ids))
    at = {"metric": "recall", "layer": 2, "width": TOP_K}
    assert pick(holed, horizon=1, **at)["count"] == pick(full, horizon=1, **at)["count"] - 1


def test_no_weights_no_mass_no_sizes_no_bytes() -> None:
    trace = learnable_trace()
    header = TraceHeader(**{**trace.header.to_json(), "expert_bytes": []})
    rows = evaluate(Noise(), replace(trace, weights=None, header=header))
    assert {"mass", "miss_bytes"}.isdisjoint(r["metric"] for r in rows)


def test_cells_part_what_the_whole_counts() -> None:
    trace = learnable_trace()
    cells = np.arange(trace.tokens) % 3 - 1  # every third token is left out
    whole, parts = (evaluate(Noise(), trace, horizons=1, cells_N=c) for c in (np.maximum(cells, 0), cells))
    kept = (cells >= 0)[speaking_passes(trace)[0]].sum()
    for metric in ("recall", "log_loss"):
        at = {"metric": metric, "layer": 2, "horizon": 1, "width": TOP_K if metric == "recall" else None}
        assert pick(parts, cell=1, **at)["numerators"].tolist() == pick(whole, cell=1, **at)["numerators"].tolist()
        assert pick(parts, cell=0, **at)["count"] + pick(parts, cell=1, **at)["count"] == kept
        assert len(pick(parts, cell=0, **at)["numerators"]) == trace.sequences
    with pytest.raises(InputError, match="one for each of"):
        evaluate(Noise(), trace, cells_N=cells[1:])


def test_a_prompt_counts_once_and_padding_never() -> None:
    trace = learnable_trace(sequences=1, tokens=8)
    rows, _ = speaking_passes(trace)
    assert rows.tolist() == [3, 4, 5, 6, 7]
    assert trace.phase is not None
    phase = trace.phase.copy()
    phase[3] = PADDING
    assert speaking_passes(replace(trace, phase=phase))[0].tolist() == [2, 4, 5, 6, 7]


def test_what_cannot_be_scored_is_one_line() -> None:
    trace = learnable_trace(sequences=2)
    with pytest.raises(InputError, match="mix sequences"):
        evaluate(Noise(), replace(trace, passes=trace.passes % 5))
    assert trace.phase is not None
    with pytest.raises(InputError, match="several decoded tokens"):
        evaluate(Noise(), replace(trace, phase=np.full_like(trace.phase, DECODE)))
    with pytest.raises(InputError, match="width 0"):
        evaluate(Noise(), trace, widths=[0])


def test_rows_become_json() -> None:
    from rgpu.experiments.command import to_plain

    assert json.dumps(to_plain(evaluate(Noise(), learnable_trace(sequences=1))))


def test_train_command_function(tmp_path: Path) -> None:
    from rgpu.experiments.train import train
    from rgpu.traces.split import split

    trace = learnable_trace()
    saved, rows = train(PreviousToken(), trace, split(trace), tmp_path / "p")
    assert saved.exists()
    assert len(rows[0]["numerators"]) == len(split(trace).scored)
    alone = learnable_trace(sequences=1)
    with pytest.raises(InputError, match="two documents or more"):
        train(PreviousToken(), alone, split(alone), tmp_path / "q")
    assert not list(tmp_path.glob("q*"))


def test_training_gives_the_predictor_its_kernel(tmp_path: Path) -> None:
    from rgpu.experiments.train import train
    from rgpu.kernels.linear_forecast import linear_forecast
    from rgpu.predictors.linear import Linear
    from rgpu.traces.split import split

    trace, predictor = learnable_trace(), Linear(epochs=1)
    plain = Linear(epochs=1).fit(trace, split(trace))
    train(predictor, trace, split(trace), tmp_path / "p")
    assert predictor.forward is linear_forecast and plain.forward is not linear_forecast
    rows, first = np.arange(4), np.zeros(4, bool)
    assert np.array_equal(predictor.predict_trace(trace, 1, rows, first), plain.predict_trace(trace, 1, rows, first))
