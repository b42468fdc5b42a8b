"""Rows that follow from a capacity sweep."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rgpu.experiments.suites.study import headline
from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.policies.policy import Traits
from rgpu.policies.ring import Ring
from rgpu.policies.size_aware_farthest import SizeAwareFarthest
from rgpu.results.derive import KINDS, OFFLINE, complete, derive, kind_of, kinds_of
from rgpu.results.rows import frame
from tests.result_rows import CONTEXT, sweep


def rows_of(hits: dict[str, np.ndarray], accesses: np.ndarray) -> pd.DataFrame:
    at = CONTEXT.at(scope="layer", reset="sequence", slots=4, capacity_share=0.5)
    parts = []
    for policy, own in hits.items():
        parts.append(at.ratio("hit_rate", own, accesses, policy=policy))
        parts.append(at.ratio("loads_per_token", accesses - own, accesses / 4, policy=policy))
    return frame(pa.concat_tables(parts))


def value(found: pd.DataFrame, policy: str, metric: str) -> pd.Series:
    rows = found[(found["policy"] == policy) & (found["metric"] == metric)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_gaps_and_verdicts_of_a_known_table() -> None:
    accesses = np.full(12, 100.0)
    lru = np.arange(40.0, 52.0)
    hits = {"lru": lru, "fifo": lru - 10, "lfu": lru, "belady": lru + 20, "belady_bypass": lru + 40, "rotary": lru + 30}
    found = derive(rows_of(hits, accesses)).to_pandas()
    assert value(found, "fifo", "gap_closed")["value"] == pytest.approx(-0.5)
    assert value(found, "lfu", "gap_closed")["value"] == pytest.approx(0.0)
    assert value(found, "rotary", "load_gap_closed")["value"] == pytest.approx(0.75)
    assert value(found, "belady", "load_gap_closed")["value"] == pytest.approx(0.5)
    assert value(found, "fifo", "hit_rate_difference")["verdict"] == "lower"
    assert value(found, "lfu", "hit_rate_difference")["verdict"] == "cannot tell"
    assert value(found, "rotary", "loads_per_token_difference")["verdict"] == "lower"
    assert found["synthetic"].all()
    assert set(found["seed"]) == {7}


def test_belady_hits_bound_only_demand_policies() -> None:
    found = derive(frame(pa.concat_tables(sweep()))).to_pandas()
    assert set(found.loc[found["metric"] == "gap_closed", "policy"]) == {"fifo", "lfu", "random"}
    assert not set(found.loc[found["metric"].str.endswith("difference"), "policy"]) & {"belady", "belady_bypass", "lru"}


def test_a_policy_on_other_sequences_is_not_compared() -> None:
    accesses = np.full(12, 100.0)
    table = rows_of({"lru": np.arange(40.0, 52.0), "lfu": np.arange(50.0, 62.0)}, accesses)
    kept = table[~((table["policy"] == "lfu") & (table["sequence"] == 3))]
    assert derive(kept).num_rows == 0
    assert derive(table).num_rows == 2


def test_complete_adds_once() -> None:
    table = frame(pa.concat_tables(sweep(("lru", "lfu", "belady"))))
    once = complete(table)
    assert len(once) > len(table)
    assert len(complete(once)) == len(once)
    assert len(complete(table[table["policy"] == "lfu"])) == len(table[table["policy"] == "lfu"])


@pytest.mark.parametrize(
    "policy", [Lru(), Belady(), BeladyBypass(), SizeAwareFarthest(), OnDemand(), Ring()], ids=lambda p: p.name
)
def test_the_kinds_tables_agree_with_the_traits(policy: Lru) -> None:
    assert kind_of(policy.traits) == (OFFLINE | KINDS)[policy.name]


def test_kinds_are_what_rows_say_but_for_policies_known_to_be_offline() -> None:
    said = {"belady": "demand", "size_aware_farthest": None, "lru": None, "mine": "clairvoyant", "other": np.nan}
    assert kinds_of(said, said.values()) == {
        "belady": "clairvoyant", "size_aware_farthest": "clairvoyant", "lru": "demand", "mine": "clairvoyant", "other": "",
    }  # fmt: skip


def test_a_clairvoyant_policy_gets_no_verdict() -> None:
    accesses = np.full(12, 100.0)
    table = rows_of(
        {"lru": np.arange(40.0, 52.0), "fifo": np.arange(30.0, 42.0), "seer": np.arange(60.0, 72.0)}, accesses
    )
    table["kind"] = np.where(table["policy"] == "seer", kind_of(Traits(needs_future=True)), "demand")
    found = complete(table)
    judged = found[found["verdict"].notna()]
    assert {*judged["policy"], *judged["baseline"]} == {"lru", "fifo"}
    assert headline(table, 4)["made-up"].keys() == {"lru", "fifo"}
