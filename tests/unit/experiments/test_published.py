"""The computations behind the field's figures: what must hold on any trace, by hand where it can be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rgpu.experiments.suites.published import (
    granularity,
    hot_transfer,
    link_batch,
    pass_order,
    plain_predictors,
    token_cycle,
)
from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.counting import (
    POLICIES,
    counts,
    reset_of,
    side_by_side,
    sizes_of,
    stream,
    streams,
)
from rgpu.experiments.suites.published.record import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    SHAPE_ONLY,
    NotTestableError,
    near,
    note,
    overall,
    shape,
    status_of,
)
from rgpu.experiments.suites.published.subjects import MODELS, Subject, halves
from rgpu.experiments.suites.published.values import VALUES, published
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.results.rows import frame
from rgpu.traces.trace import DECODE, PROMPT, Trace, batched
from tests.support import routed_trace


@pytest.fixture(scope="module")
def trace() -> Trace:
    made = routed_trace(3, tokens=320, layers=3, experts=12, top_k=3, sequences=8)
    made.token_ids = (made.expert_ids[:, 0, 0] * 5).astype(np.int32)  # a number that says something about routing
    for s, meta in enumerate(made.header.sequences):
        meta["domain"] = ("prose", "code")[s % 2]
    return made


def top_one(seed: int = 5) -> Trace:
    return routed_trace(seed, tokens=120, layers=2, experts=8, top_k=1, sequences=3)


# -- one access at a time


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("order", granularity.ORDERINGS)
def test_events_of_one_access_replay_alike_either_way(name: str, order: str) -> None:
    made, known = top_one(), top_one(6)
    pool = PoolConfig(slots=3)
    found, accesses = granularity.one_at_a_time(made, POLICIES[name], pool, order, reset="sequence", calibration=known)
    own = counts(made, POLICIES[name], pool, calibration=known)
    assert found.tolist() == own.loads.tolist()
    assert accesses.tolist() == own.accesses.tolist()


def test_a_fixed_set_does_not_care_how_events_are_cut(trace: Trace) -> None:
    pool, policy = PoolConfig(slots=5), POLICIES["static_hot"]
    whole = counts(trace, policy, pool, calibration=trace).loads
    for order in granularity.ORDERINGS:
        missed, _ = granularity.one_at_a_time(trace, policy, pool, order, reset="sequence", calibration=trace)
        assert missed.tolist() == whole.tolist()


def test_the_discriminating_trace_of_the_survey() -> None:
    from tests.support import trace_of

    made = trace_of([[2], [1], [0, 2]], 4)
    missed, _ = granularity.one_at_a_time(made, POLICIES["lru"], PoolConfig(slots=2), "ascending", reset="sequence")
    assert missed.tolist() == [4]
    assert counts(made, POLICIES["lru"], PoolConfig(slots=2)).loads.tolist() == [3]


def test_every_order_takes_the_members_of_an_event_together() -> None:
    keys, sizes = np.array([7, 3, 5, 2, 9]), np.array([3, 0, 2])
    assert granularity.in_order(keys, sizes, "ascending", 0).tolist() == [1, 2, 0, 3, 4]
    assert granularity.in_order(keys, sizes, "rank", 0).tolist() == [0, 1, 2, 3, 4]
    assert granularity.in_order(keys, sizes, "reverse", 0).tolist() == [2, 1, 0, 4, 3]
    mixed = granularity.in_order(keys, sizes, "random", 1)
    assert sorted(mixed[:3].tolist()) == [0, 1, 2] and sorted(mixed[3:].tolist()) == [3, 4]


def test_permuting_passes_keeps_every_event(trace: Trace) -> None:
    changed = pass_order.permuted(trace, 4)
    assert (changed.expert_ids == trace.expert_ids).all()
    assert sorted(changed.passes) == sorted(trace.passes)
    assert (changed.passes != trace.passes).any()
    one = POLICIES["belady_bypass"]
    many = PoolConfig(slots=trace.header.num_experts)  # with room for all, order does not matter
    assert replay(changed, one, many).loads == replay(trace, one, many).loads


# -- the token cycle


@pytest.mark.parametrize("shape_", [(3, 2), (6, 3), (2, 4)])
def test_a_global_lru_pool_hits_nothing_up_to_one_layer_short_of_the_cycle(shape_: tuple[int, int]) -> None:
    layers, top_k = shape_
    for seed in range(6):
        made = routed_trace(seed, tokens=60, layers=layers, experts=9, top_k=top_k, sequences=2)
        for size in range(layers, token_cycle.zero_up_to(layers, top_k) + 1):
            assert counts(made, POLICIES["lru"], PoolConfig("global", size)).hits.sum() == 0
        assert counts(made, POLICIES["lru"], PoolConfig("global", 2 * layers * top_k)).hits.sum() > 0
        edge = PoolConfig("global", token_cycle.zero_up_to(layers, top_k))
        assert layers == 2 or counts(made, POLICIES["belady"], edge).hits.sum() > 0  # an event of two layers fills it


def test_pools_of_the_cycle_hold_the_edge_and_stay_within_the_model() -> None:
    sizes = token_cycle.pools_of(8, 32, 4, False)
    assert {28, 29, 32} <= set(sizes)
    assert min(sizes) >= 8 and max(sizes) <= 8 * 32
    assert token_cycle.spread(10, 4) == (3, 3, 2, 2)


# -- batches


def test_side_by_side_joins_the_nth_passes(trace: Trace) -> None:
    made = side_by_side(trace, 4)
    assert made.tokens == trace.tokens and batched(made) and reset_of(made) == "batch"
    assert len(np.unique(made.passes)) == 80
    tokens, assignments = sizes_of(made, "batch")
    assert tokens.sum() == trace.tokens and assignments.sum() == trace.expert_ids.size
    assert side_by_side(trace, 1) is trace


def test_a_stream_keeps_its_lanes_busy(trace: Trace) -> None:
    lengths = np.diff(trace.seq_offsets)
    made = stream(trace, 3, np.arange(trace.sequences))
    _, together = np.unique(made.passes, return_counts=True)
    assert together.max() == 3 and (together == 3).mean() > 0.6
    assert together.sum() == lengths.sum()
    for s in range(made.sequences):  # a sequence keeps its order, one token a pass
        own = made.passes[made.seq_offsets[s] : made.seq_offsets[s + 1]]
        assert (np.diff(own) == 1).all()
    same, other = streams(trace, 3, 2, 1)
    assert (same.expert_ids == streams(trace, 3, 2, 1)[0].expert_ids).all()
    assert (same.expert_ids != other.expert_ids).any()


def test_full_passes_are_those_with_every_request_decoding() -> None:
    passes = np.array([0, 0, 1, 1, 2])
    assert link_batch.full_passes(passes, None, 2).tolist() == [0, 1]
    assert link_batch.full_passes(passes, np.array([PROMPT, DECODE, DECODE, DECODE, DECODE]), 2).tolist() == [1]


# -- transfer


def subject(trace: Trace, **more: Any) -> Subject:
    return halves("toy", "made up", trace, **more)


def test_profiles_and_texts_never_share_a_document(trace: Trace) -> None:
    own = subject(trace)
    names = [{m["document"] for m in part.header.sequences} for part in (own.calibration, own.scored)]
    assert not names[0] & names[1]
    found = frame(pa.concat_tables(hot_transfer.rows(Bench(True), own)))
    static = found[(found["policy"] == "static_hot") & found["domain"].notna()]
    assert set(static["domain"]) == {"prose", "code"}
    assert set(static["case"]) == {"prose", "code", hot_transfer.ALL}
    diagonal = static[static["domain"].astype(str) == static["case"].astype(str)]
    by_hand = counts(
        own.scored.select(hot_transfer.domains_of(own.scored)["code"]), POLICIES["static_hot"], PoolConfig(slots=3),
        calibration=own.calibration.select(hot_transfer.domains_of(own.calibration)["code"]),
    )  # fmt: skip
    assert float(diagonal[diagonal["domain"] == "code"]["numerator"].iloc[0]) == by_hand.hits.sum()


def test_splits_of_a_data_set_are_one_domain() -> None:
    assert [hot_transfer.family(d) for d in ("mmlu_test", "mmlu_dev", "mmlu_pro_test", "code")] == [
        "mmlu", "mmlu", "mmlu_pro", "code",
    ]  # fmt: skip


def test_the_second_half_is_scored_with_the_first_halfs_profile() -> None:
    ids = np.array([0, 1, 0, 1, 2, 2, 2, 0], np.uint8).reshape(8, 1, 1)
    made = routed_trace(0, tokens=8, layers=1, experts=4, top_k=1, sequences=1)
    made.expert_ids = ids
    static, recent, accesses = hot_transfer.second_half(made, 3)
    assert accesses.tolist() == [4]
    assert static.tolist() == [1]  # {0, 1} of the first half; the second is 2, 2, 2, 0
    assert recent.tolist() == [3]  # 2 missed once


def test_one_domain_is_not_testable() -> None:
    made = routed_trace(3, tokens=60, sequences=4)
    with pytest.raises(NotTestableError, match="domains"):
        hot_transfer.rows(Bench(True), subject(made, synthetic=True))


# -- plain predictors


def test_recall_at_the_full_width_is_one_and_grows_with_it(trace: Trace) -> None:
    own = subject(trace)
    found = frame(pa.concat_tables(plain_predictors.rows(Bench(), own)))
    rates = found[found["metric"] == "recall"]
    assert set(rates["predictor"]) == {"popularity", "previous_token", "token_id"}
    for _, part in rates.groupby("predictor", observed=True):
        assert part.sort_values("width")["value"].is_monotonic_increasing
        assert part[part["width"] == 12]["value"].iloc[0] == 1.0
    assert (rates["denominator"] == rates["denominator"].iloc[0]).all()


def test_the_previous_token_recalls_what_reuse_says(trace: Trace) -> None:
    from rgpu.traces import stats

    rows = plain_predictors.scored_tokens(trace)
    popular = stats.popularity(trace)
    found = plain_predictors.recall("previous_token", trace, popular, None, [3], rows)[3].sum()
    assert found / (len(rows) * 3 * 3) == pytest.approx(stats.reuse(trace, (1,)).mean())


def test_a_table_of_token_numbers_by_hand() -> None:
    known = pd.DataFrame({"token_id": [5, 5, 9], "expert": [2, 0, 1], "count": [3, 1, 7]})
    named = plain_predictors.named_by_token(known, np.array([5, 9, 4]), np.array([0.1, 0.5, 0.2, 0.2]), 2)
    assert named.tolist() == [[2, 0], [1, 2], [1, 2]]  # 4 was never seen: popularity


def test_tokens_are_scored_once_they_follow_another() -> None:
    made = routed_trace(0, tokens=10, layers=1, sequences=2)
    assert made.phase is not None
    made.phase[:3] = PROMPT
    assert plain_predictors.scored_tokens(made).tolist() == [3, 4, 6, 7, 8, 9]


# -- statuses and published values


def test_the_status_follows_the_criteria() -> None:
    good, bad = shape("a", True, 1), shape("b", False, 2)
    met, unmet = near("c", 1.0, 1.05, 0.1), near("d", 1.0, 2.0, 0.1)
    beside = note("e", False, 3)
    assert status_of([]) == status_of([beside]) == NOT_TESTABLE
    assert status_of([good, bad, met]) == NOT_REPRODUCED
    assert status_of([good, beside]) == status_of([good, met, unmet]) == SHAPE_ONLY
    assert status_of([good, met, beside]) == REPRODUCED
    assert near("f", 0.0, 0.0, 0.0).holds and not near("g", 1e-9, 0.0, 0.0).holds


def test_recorded_traces_decide_and_synthetic_ones_never_reproduce() -> None:
    assert overall({"a": REPRODUCED, "b": SHAPE_ONLY}, set()) == REPRODUCED
    assert overall({"a": REPRODUCED, "b": NOT_REPRODUCED}, set()) == NOT_REPRODUCED
    assert overall({"a": REPRODUCED, "b": NOT_REPRODUCED}, set(), exists=True) == REPRODUCED
    assert overall({"a": SHAPE_ONLY, "made": NOT_REPRODUCED}, {"made"}) == SHAPE_ONLY
    assert overall({"made": REPRODUCED}, {"made"}) == SHAPE_ONLY
    assert overall({"a": NOT_TESTABLE, "made": NOT_REPRODUCED}, {"made"}) == NOT_REPRODUCED
    assert overall({"a": NOT_TESTABLE}, set()) == NOT_TESTABLE


def test_every_published_value_has_its_source() -> None:
    assert all(v.source and v.about and np.isfinite(v.value) for v in VALUES)
    assert published("miss_gap", "gap", capacity_share=0.400065, batch=8) == pytest.approx(0.4485, abs=1e-4)
    assert published("miss_gap", "admission_share", capacity_share=0.304688, batch=8) == pytest.approx(0.3958, abs=1e-4)
    assert published("link_batch", "union_over_uniform", batch=2) == pytest.approx(1 - 0.031, abs=1e-3)
    with pytest.raises(KeyError, match="published values"):
        published("miss_gap", "gap")


def test_targets_of_synthetic_traces_say_where_they_come_from() -> None:
    for model in MODELS:
        targets = model.targets()
        assert model.alone < targets.far < targets.near == model.reuse
        assert "gpt-oss-20b" in targets.source and model.reuse_source in targets.source


def test_counted_tables_score_a_domain_with_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "popularity"
    folder.mkdir()
    file, _ = plain_predictors.COUNTED["mixtral-8x7b"]
    columns = {
        "domain": [0, 0, 1, 1],
        "layer": [0] * 4,
        "expert": [0, 1, 0, 2],
        "token_id": [7, 8, 7, 8],
        "count": [4, 2, 5, 3],
    }
    np.savez(folder / f"{file}.npz", **{k: np.array(v) for k, v in columns.items()})
    (folder / f"{file}.json").write_text(json.dumps({"model": "toy", "domains": ["a", "b"], "layers": [0]}))
    found = frame(pa.concat_tables(plain_predictors.extra(Bench(), tmp_path)["mixtral-8x7b"]))
    rates: Any = found[found["metric"] == "recall"].set_index("predictor")
    assert rates.loc["token_id", "denominator"] == 14
    # of each domain's rows, those whose expert is among the two that the other domain's table names for the token
    assert rates.loc["token_id", "numerator"] >= 9
    assert plain_predictors.extra(Bench(), tmp_path / "nowhere") == {}
