"""Do hot sets transfer? Profiles of one domain scored on another, of half a stream on the other half; LRU beside.

Legend: S sequences, L MoE layers, E experts, D domains.
"""

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.counting import POLICIES, Counts, at_pool, counts, slots_at
from rgpu.experiments.suites.published.record import About, Criterion, NotTestableError, near, shape
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.experiments.suites.published.values import published
from rgpu.replay.engine import replay
from rgpu.replay.events import pass_groups
from rgpu.replay.pool import PoolConfig
from rgpu.traces.trace import Trace

ABOUT = About(
    "hot_transfer",
    "field_hot_transfer",
    "Hot sets between domains, and between the halves of a stream, with LRU beside",
    "llama.cpp PR 27861, thecodacus/llama.cpp PR 5, ml-explore/mlx-lm issue 1438, and the field survey's conflict over them",
    "a fixed set of the most used experts of one text, scored on another; the most used of the first half of a stream scored "
    "on its second half; LRU with as many slots",
    "other models and corpora; domains are those of our traces, text of the two parts is disjoint on the diagonal too; one "
    "slot of the static set is spent on staging",
)
SHARE = 0.25
LEAST = 2  # sequences of a domain in each half
ALL, HALVES = "all domains", "second half of a stream"
_SPLITS = re.compile(r"_(test|dev|validation|main|extended|diamond|base)$")


def family(domain: str) -> str:
    """A data set without the name of its split: these are one domain."""
    return _SPLITS.sub("", domain)


def domains_of(trace: Trace) -> dict[str, np.ndarray]:
    """Sequences by domain, largest domains first."""
    named: dict[str, list[int]] = {}
    for s, meta in enumerate(trace.header.sequences):
        named.setdefault(family(str(meta.get("domain", ""))), []).append(s)
    return {d: np.array(named[d]) for d in sorted(named, key=lambda d: (-len(named[d]), d))}


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    known, scored = domains_of(subject.calibration), domains_of(subject.scored)
    names = [d for d in known if len(known[d]) >= LEAST and len(scored.get(d, ())) >= LEAST][:6]
    tables = [] if subject.synthetic else _halves(bench, subject)
    if len(names) < 2:
        if tables:
            return tables
        raise NotTestableError(f"got {len(names)} domains with {LEAST} sequences in each half; expected two or more")
    pool = PoolConfig(slots=slots_at(subject.scored, SHARE))
    profiles = {d: subject.calibration.select(known[d]) for d in names}
    profiles[ALL] = subject.calibration.select(np.sort(np.concatenate([known[d] for d in names])))
    texts = {d: subject.scored.select(scored[d]) for d in names}

    def one(cell: tuple[str, str]) -> Counts:
        return counts(texts[cell[1]], POLICIES["static_hot"], pool, calibration=profiles[cell[0]])

    cells = [(profile, text) for text in names for profile in profiles]
    found = dict(zip(cells, bench.map(one, cells), strict=True))
    recent = dict(zip(names, bench.map(lambda d: counts(texts[d], POLICIES["lru"], pool), names), strict=True))
    context = bench.context(subject, ABOUT.figure)
    for (profile, text), own in found.items():
        at = at_pool(context, "static_hot", pool, subject.scored, case=profile, domain=text)
        tables.append(at.ratio("hit_rate", own.hits, own.accesses, keep=False))
    for text, own in recent.items():
        at = at_pool(context, "lru", pool, subject.scored, domain=text)
        tables.append(at.ratio("hit_rate", own.hits, own.accesses, keep=False))
    return tables + _differences(at_pool(context, "static_hot", pool, subject.scored), names, found)


def _differences(at: Any, names: list[str], found: dict[tuple[str, str], Counts]) -> list[pa.Table]:
    """Own profile minus the mean of the others', and minus the merged one, over all sequences."""
    accesses = np.concatenate([found[d, d].accesses for d in names]).astype(float)
    own = np.concatenate([found[d, d].hits for d in names])
    other = np.concatenate([np.mean([found[p, d].hits for p in names if p != d], axis=0) for d in names])
    merged = np.concatenate([found[ALL, d].hits for d in names])
    return [
        at.ratio("own_minus_other", own - other, accesses, keep=False, case="across domains"),
        at.ratio("own_minus_merged", own - merged, accesses, keep=False, case="merged profile"),
    ]


def _halves(bench: Bench, subject: Subject) -> list[pa.Table]:
    """Hits on the second half of every sequence: a profile of its own first half, and LRU that ran through both."""
    trace = subject.scored
    slots = slots_at(trace, SHARE)
    static, recent, accesses = second_half(trace, slots)
    context = bench.context(subject, ABOUT.figure, case=HALVES)
    tables = []
    for policy, hits in (("static_hot", static), ("lru", recent)):
        at = at_pool(context, policy, PoolConfig(slots=slots), trace)
        tables.append(at.ratio("hit_rate", hits, accesses, keep=False))
    at = at_pool(context, "lru", PoolConfig(slots=slots), trace)
    return [*tables, at.ratio("lru_minus_static", recent - static, accesses, keep=False)]


def second_half(trace: Trace, slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hits of the static set, hits of LRU, accesses) int64 [S] over the later half of each sequence's passes.

    The static set is, in each layer, the `slots` - 1 experts its first half used most (one slot is staging)."""
    result = replay(trace, POLICIES["lru"], PoolConfig(slots=slots), reset="sequence")
    events, layers = result.events, trace.layers
    order, starts, _ = pass_groups(trace)
    owner_G = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[order][starts[:-1]]
    first_G = np.searchsorted(owner_G, np.arange(trace.sequences))
    length_S = np.bincount(owner_G, minlength=trace.sequences)
    late_G = np.arange(len(owner_G)) - first_G[owner_G] >= length_S[owner_G] // 2
    group_V = np.searchsorted(np.unique(trace.passes), events.pass_id)
    late_V, owner_V = late_G[group_V], owner_G[group_V]
    sizes_V = np.diff(events.offs)
    flat = (owner_V * layers + events.layer).repeat(sizes_V)
    experts = trace.header.num_experts
    late_A = late_V.repeat(sizes_V)
    key_A = flat.astype(np.int64) * experts + (events.keys % experts)
    total = trace.sequences * layers
    early = np.bincount(key_A[~late_A], minlength=total * experts).reshape(total, experts)
    after = np.bincount(key_A[late_A], minlength=total * experts).reshape(total, experts)
    hot = np.argsort(-early, axis=1, kind="stable")[:, : max(1, slots - 1)]
    static = np.take_along_axis(after, hot, 1).sum(1).reshape(trace.sequences, layers).sum(1)
    recent = np.bincount(owner_V[late_V], result.hits_event[late_V], trace.sequences).astype(np.int64)
    return static, recent, after.sum(1).reshape(trace.sequences, layers).sum(1)


def judge(found: pd.DataFrame) -> list[Criterion]:
    by_metric = found.drop_duplicates("metric", keep="last").set_index(
        found["metric"].drop_duplicates(keep="last").astype(str)
    )
    criteria = []
    if "lru_minus_static" in by_metric.index:
        row = by_metric.loc["lru_minus_static"]
        criteria.append(
            shape(
                "on the second half of a stream LRU beats the profile of its first half",
                row["lo"] > 0,
                [row["value"], row["lo"], row["hi"]],
                "0.67 (LRU) against 0.10 (list of the other half)",
            )
        )
    if "own_minus_other" in by_metric.index:
        other: Any = by_metric.loc["own_minus_other"]
        merged: Any = by_metric.loc["own_minus_merged"]
        criteria += [
            shape(
                "a profile of the text's own domain hits more than those of other domains",
                other["lo"] > 0,
                [other["value"], other["lo"], other["hi"]],
                0.15,
            ),
            near(
                "own minus other:",
                float(other["value"]),
                published("hot_transfer", "own_minus_other", case="across domains"),
                0.05,
            ),
            Criterion(
                "a merged profile is within a point of the specialists",
                float(merged["value"]) <= 0.01,
                float(merged["value"]),
                0.01,
                "value",
            ),
        ]
    return criteria
