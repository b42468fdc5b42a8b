"""Nothing that is scored is learnt from: scored sequences are spoiled, and every fit stays the same bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.errors import ConsistencyError
from rgpu.experiments.inputs import scored_parts
from rgpu.experiments.study import predicted_replay
from rgpu.experiments.suites.predicting import transfer
from rgpu.experiments.suites.predicting.fitting import Bench
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.published.subjects import Subject, halves
from rgpu.experiments.train import train
from rgpu.predictors.popularity import Popularity
from rgpu.traces.split import Split, held_apart, split
from rgpu.traces.trace import Trace
from tests.predicting import EXPERTS, FOLDER, learnable_trace, make

NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem != "oracle")  # which knows the future


def spoiled(trace: Trace, sequences: np.ndarray) -> Trace:
    """Other routing, gate weights, hidden states, tokens and domains in those sequences, the same lengths and documents."""
    row_N = np.isin(np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets)), sequences)
    assert trace.weights is not None
    weights = np.where(row_N[:, None, None], trace.weights[..., ::-1], trace.weights)
    ids, hidden, tokens = trace.expert_ids.copy(), np.array(trace.hidden), np.array(trace.token_ids)
    ids[row_N] = (ids[row_N] + 3) % EXPERTS
    hidden[row_N] = -7 * hidden[row_N][::-1]
    tokens[row_N] = 5 - tokens[row_N]
    entering = np.array(trace.pre_attention)
    entering[row_N] = -3 * entering[row_N][::-1]
    metas = [dict(m, domain="other") if s in sequences else dict(m) for s, m in enumerate(trace.header.sequences)]
    logits = None if trace.router_logits is None else np.where(row_N[:, None, None], 9, trace.router_logits)
    return replace(
        trace, header=replace(trace.header, sequences=metas), expert_ids=ids, hidden=hidden, token_ids=tokens,
        pre_attention=entering, weights=weights, router_logits=None if logits is None else logits.astype(np.float16),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_scored_sequences_change_no_fit(name: str, tmp_path: Path) -> None:
    trace = learnable_trace(logits=True)
    parts = split(trace)
    clean, other = (
        make(name, tmp_path, **few(name)).fit(t, parts).tensors_ for t in (trace, spoiled(trace, parts.scored))
    )
    assert clean.keys() == other.keys()
    assert all(np.array_equal(clean[n], other[n]) for n in clean)


def test_calibrating_sequences_do() -> None:
    trace = learnable_trace()
    parts = split(trace)
    clean, other = (Popularity().fit(t, parts).tensors_ for t in (trace, spoiled(trace, parts.calibration[:1])))
    assert not np.array_equal(clean["popularity_LE"], other["popularity_LE"])


def few(name: str) -> dict[str, Any]:
    """Short training: whether a sequence is read does not depend on how often."""
    return (
        {"epochs": 1}
        if name in ("history_gru", "history_transformer", "mlp", "group_mlp", "low_rank", "linear", "pre_attention")
        else {}
    )


def test_a_split_that_leaks_is_refused(tmp_path: Path) -> None:
    trace = learnable_trace()
    parts = split(trace)
    leaking = Split(np.append(parts.calibration, parts.scored[:1]), parts.scored, "")
    with pytest.raises(ConsistencyError, match="1 of 3 scored sequences also calibrate"):
        train(Popularity(), trace, leaking, tmp_path / "p")
    whole = halves("toy", "", trace)
    subject = Subject("toy", "", trace, trace, whole.scored)
    with pytest.raises(ConsistencyError, match="popularity on toy"):
        Bench(tmp_path, True, ["popularity"]).scores("popularity", Material(subject))


def test_without_documents_content_tells() -> None:
    trace = learnable_trace()
    trace.header.sequences = []
    first, others = trace.select(np.array([0])), trace.select(np.array([1, 2]))
    held_apart(first, others, "here")
    with pytest.raises(ConsistencyError, match="here: 1 of 1"):
        held_apart(trace, first, "here")


def test_contents_tell_where_only_one_side_names_documents() -> None:
    named = learnable_trace()
    bare = replace(named, header=replace(named.header, sequences=[]))
    rows = replace(bare, token_ids=None)  # nothing but routed ids to know it by
    for one, other in ((named, bare), (bare, named), (named, rows), (rows, named)):
        with pytest.raises(ConsistencyError, match="here: 6 of 6 scored sequences"):
            held_apart(one, other, "here")
    alike = replace(named, token_ids=named.token_ids + 1)  # type: ignore[operator]
    for s, meta in enumerate(list(alike.header.sequences)):
        meta["document"] = f"other {s}"
    held_apart(replace(bare, header=replace(bare.header, sequences=[])), alike, "here")  # routed alike, another text


def test_rows_of_a_dataset_tell_beside_documents() -> None:
    one, other = learnable_trace(), learnable_trace(seed=1)
    for s in range(one.sequences):
        one.header.sequences[s] = {"document": f"a{s}", "dataset": "d", "row_index": s}
        other.header.sequences[s] = {"document": f"b{s}", "dataset": "d", "row_index": s + 4}
    with pytest.raises(ConsistencyError, match=r"here: 2 of 6 scored sequences also calibrate \(d/4\)"):
        held_apart(one, other, "here")
    one.header.sequences[1]["row_index"] = 0
    held_apart(one.select(split(one).calibration), one.select(split(one).scored), "here")  # they stay together


def test_what_is_spoiled_is_everything() -> None:
    """An array added to traces is to be spoiled too."""
    trace = learnable_trace(logits=True)
    other = spoiled(trace, np.array([5])).arrays()
    lengths = {"seq_offsets", "positions", "passes", "phase"}
    for name, array in trace.arrays().items():
        if name in lengths:
            assert np.array_equal(array, other[name])
        else:
            assert np.array_equal(array[:150], other[name][:150]), name
            assert not np.array_equal(array[150:], other[name][150:]), name


def test_replays_with_a_forecast_keep_both_parts_apart() -> None:
    """Policy calibration, the predictor's fit and what is replayed: one split."""
    trace = learnable_trace()
    calibration, scored, _ = scored_parts(trace, "auto", True)
    assert calibration is not None
    held_apart(calibration, scored, "replay")
    fitted = Popularity().fit(calibration)
    assert predicted_replay.unseen_by(fitted, trace).tokens == scored.tokens


def test_no_side_of_a_transfer_trains_on_what_any_side_tests() -> None:
    trace = learnable_trace(sequences=16)
    for s, meta in enumerate(trace.header.sequences):
        meta["domain"] = ("prose", "code")[s % 2]
    text = learnable_trace(seed=1, sequences=16)
    material = Material(halves("toy", "", trace), "", {"text": text, "int4": spoiled(trace, np.arange(16))})
    groups = dict(transfer.sides(material))
    assert set(groups) == {"domain", "context", "text", "precision"}
    for name, own in groups.items():
        for side in own:
            for test in own:
                held_apart(side.train, test.test, f"{name}: {side.name} on {test.name}")
