"""The split: a partition, deterministic, that never parts a document."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.traces.split import origins, sharing, split
from rgpu.traces.trace import Trace

settings.register_profile("fixtures", suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@settings(settings.get_profile("fixtures"), max_examples=60)
@given(
    documents=st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=2), min_size=1, max_size=12),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_partition_by_document(
    make_trace: Callable[..., Trace], documents: list[set[int]], share: float, seed: int
) -> None:
    trace = make_trace(lengths=(4,) * len(documents))
    trace.header.sequences = [{"document": [f"d{d}" for d in sorted(ds)], "domain": "x"} for ds in documents]
    made = split(trace, share, seed)
    assert sorted([*made.calibration, *made.scored]) == list(range(len(documents)))
    seen = [{d for s in part for d in documents[s]} for part in (made.calibration, made.scored)]
    assert not seen[0] & seen[1]
    again = split(trace, share, seed)
    assert np.array_equal(made.calibration, again.calibration) and made.digest == again.digest


def test_both_parts_hold_something(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace(lengths=(3, 3))
    for share in (0.001, 0.999):
        made = split(trace, share)
        assert len(made.calibration) == len(made.scored) == 1
    alone = split(make_trace(lengths=(3,)))
    assert alone.calibration.tolist() == [] and alone.scored.tolist() == [0]


def test_every_domain_is_divided(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace(lengths=(2,) * 40)
    for s, meta in enumerate(trace.header.sequences):
        meta["domain"] = "prose" if s < 20 else "code"
    made = split(trace, 0.25)
    assert [(made.calibration < 20).sum(), (made.calibration >= 20).sum()] == [5, 5]
    assert split(trace, 0.25, seed=1).digest != made.digest


def test_equal_texts_stay_together(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace(lengths=(3,) * 8)
    assert trace.token_ids is not None
    trace.token_ids[9:12] = trace.token_ids[0:3]
    for seed in range(6):
        made = split(trace, seed=seed)
        assert (0 in made.calibration) == (3 in made.calibration)


def test_dataset_and_row_name_a_document(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace(lengths=(3,) * 6)
    trace.header.sequences = [{"dataset": "d", "row_index": s // 3} for s in range(6)]
    made = split(trace)
    assert {tuple(made.calibration), tuple(made.scored)} == {(0, 1, 2), (3, 4, 5)}


def test_sequences_are_known_again_in_another_trace(make_trace: Callable[..., Trace]) -> None:
    trace, other = make_trace(lengths=(3,) * 4), make_trace(lengths=(3,) * 4, seed=1)
    assert other.token_ids is not None and trace.token_ids is not None
    other.token_ids[:] = 100 + np.arange(12)
    for told, again, shared in (
        ({"document": "d0"}, {"document": ["x", "d0"]}, True),
        ({"document": ["d0", "x"]}, {"document": ["d0", "extra"]}, True),
        ({"dataset": "d", "row_index": 4}, {"dataset": "d", "row_index": 4}, True),
        ({"dataset": "d", "row_index": 4}, {"document": "d/4"}, True),
        ({"dataset": "d", "row_index": 4}, {"dataset": "d", "row_index": 5}, False),
        ({}, {}, False),
    ):
        trace.header.sequences, other.header.sequences = [told, {}, {}, {}], [{}, again, {}, {}]
        assert sharing(other, origins(trace)).tolist() == [False, shared, False, False]
    other.token_ids[6:9] = trace.token_ids[0:3]
    assert sharing(other, origins(trace)).tolist() == [False, False, True, False]
    trace.token_ids = None
    assert not sharing(other, origins(trace)).any() and sharing(trace, origins(trace)).all()


def test_share_out_of_range(make_trace: Callable[..., Trace]) -> None:
    with pytest.raises(InputError, match="calibration=1"):
        split(make_trace(), 1)
