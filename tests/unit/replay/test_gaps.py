"""The gap decomposition adds up, and its parts have the signs that the definitions promise."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rgpu.errors import InputError
from rgpu.policies.fifo import Fifo
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.policies.ring import Ring
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.engine import replay
from rgpu.replay.gaps import check_sizes, decompose, gap_curve
from rgpu.replay.pool import PoolConfig
from rgpu.results.gap_rows import gap_rows
from rgpu.results.rows import frame
from tests.result_rows import sweep
from tests.support import routed_trace

POLICIES: list[Any] = [Lru(), Fifo(), OnDemand(), Ring(), StaticHot()]


@pytest.mark.parametrize("reset", ["none", "sequence"])
def test_parts_add_up_and_none_is_negative_where_events_fit(reset: str) -> None:
    trace = routed_trace(5, tokens=80)
    slots = [2, 3, 5, 8]
    curves = gap_curve(trace, POLICIES, slots, reset=reset, calibration=trace)
    for policy in POLICIES:
        for count, gap in zip(slots, curves[policy.name], strict=True):
            loads = replay(trace, policy, PoolConfig(slots=count), reset=reset, calibration=trace).loads
            parts = dict(gap.parts())
            assert sum(parts.values()) == loads
            assert min(parts.values()) >= 0, (policy.name, count)
            divided = policy.name in ("lru", "fifo")
            assert ("victim" in parts) == divided and ("undivided" in parts) != divided


def test_everything_resident_leaves_only_cold_loads() -> None:
    trace = routed_trace(6)
    gap = gap_curve(trace, [Lru()], [8])["lru"][0]
    assert (gap.capacity, gap.admission, gap.victim) == (0, 0, 0)
    assert gap.cold == sum(len(np.unique(trace.expert_ids[:, layer])) for layer in range(trace.layers))


def test_unequal_sizes_under_a_byte_budget_are_refused() -> None:
    with pytest.raises(InputError, match="flow bound"):
        check_sizes(np.array([0, 100]))
    assert decompose(9, 2, 4, 5, divides=True).victim == 4


def test_rows_add_up_to_the_loads_of_the_policy() -> None:
    table = frame(pa.concat_tables(sweep()))
    rows = gap_rows(table).to_pandas()
    loads = table[(table["metric"] == "loads_per_token") & table["sequence"].isna()]
    whole = loads.set_index(["policy", "reset", "slots"])["value"]
    summed = rows.groupby(["policy", "reset", "slots"])["value"].sum()
    assert len(summed) == 9 * 2 * 3
    for key, value in summed.items():
        assert value == pytest.approx(whole[key])
    assert not {"belady", "belady_bypass"} & set(rows["policy"])
    assert set(rows.loc[rows["policy"] == "lru", "case"]) == {"cold", "capacity", "admission", "victim"}
