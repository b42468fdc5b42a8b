"""A small made-up results table, marked synthetic, with rows for every figure."""

import numpy as np
import pyarrow as pa

from rgpu.results.gap_rows import gap_rows
from rgpu.results.pairs import pair_rows
from rgpu.results.rows import Context, frame
from tests.claim_rows import claim_rows
from tests.field_rows import field_rows
from tests.predictor_rows import predictor_rows
from tests.prefetch_rows import prefetch_rows
from tests.validation_rows import validation_rows

EXPERTS, LAYERS, SEQUENCES = 8, 3, 10
POLICIES = ("on_demand", "random", "fifo", "ring", "lru", "lfu", "static_hot", "router_lag", "rotary", "belady")
CONTEXT = Context(
    experiment="capacity_sweep",
    trace="made-up",
    model="none",
    source="made-up numbers of the tests",
    trace_tokens=1_234,
    synthetic=True,
    provenance={"seed": 7, "config_hash": "0" * 12, "commit": "unknown", "hardware": "none", "date": "2026-01-01"},
)


def sweep(policies: tuple[str, ...] = (*POLICIES, "belady_bypass")) -> list[pa.Table]:
    rng = np.random.default_rng(0)
    accesses, tokens = rng.integers(200, 400, SEQUENCES), rng.integers(20, 40, SEQUENCES)
    parts = []
    for reset in ("none", "sequence"):
        for slots in (2, 4, 6):
            at = CONTEXT.at(scope="layer", reset=reset, slots=slots, capacity_share=slots / EXPERTS)
            for i, policy in enumerate(policies):
                rate = np.clip(slots / EXPERTS * (0.6 + 0.08 * i) + rng.normal(0, 0.02, SEQUENCES), 0, 1)
                hits = np.round(rate * accesses)
                own = at.at(policy=policy)
                parts.append(own.ratio("hit_rate", hits, accesses))
                parts.append(own.ratio("loads_per_token", accesses - hits, tokens, unit="loads/token"))
                moved = 1000 * (accesses - hits)
                cold = np.minimum(accesses - hits, 5.0)
                parts.append(own.ratio("cold_per_token", cold, tokens, unit="loads/token"))
                parts.append(own.ratio("bytes_per_token", moved, tokens, unit="bytes/token", keep=False))
    return parts


def everything() -> list[pa.Table]:
    """Rows for every figure, about three thousand."""
    parts = sweep()
    swept = frame(pa.concat_tables(parts))
    parts += [pair_rows(swept), gap_rows(swept), pair_rows(swept, against="rotary", experiment="comparison")]
    quarter = CONTEXT.at(scope="layer", reset="none", slots=2, capacity_share=0.25)
    for layer in range(LAYERS):
        share = np.arange(1, EXPERTS + 1) ** -0.5
        at = CONTEXT.at(experiment="popularity", layer=layer)
        parts.append(at.rows("assignment_share", "share", share / share.sum(), expert=np.arange(EXPERTS)))
        for lag in (1, 2, 4, 16):
            at = CONTEXT.at(experiment="reuse", layer=layer, lag=lag)
            parts += [at.rows("reuse", "share", 0.3 + 0.2 / lag), at.rows("reuse_independent", "share", 0.25)]
        for policy in ("lru", "rotary"):
            at = quarter.at(experiment="layer_hits", layer=layer, policy=policy)
            parts.append(at.rows("hit_rate", "share", 0.4 + 0.1 * layer))
    at = CONTEXT.at(experiment="prediction", method="trained")
    for i, predictor in enumerate(("popularity", "linear", "mine")):
        for width in (2, 4, 6):
            value = 0.3 + 0.1 * i + 0.05 * width
            for horizon in (1, 2, 3, 4):
                spread = {"lo": value - 0.03, "hi": value + 0.03}
                own = at.at(predictor=predictor, width=width)
                parts.append(
                    own.rows("recall", "share", value - 0.02 * horizon, horizon=horizon, case="layer", **spread)
                )
            parts.append(own.rows("recall", "share", value, lag=1, case="token"))
    offsets = np.arange(-20, 30)
    for case in ("switch", "leave", "return"):
        for policy in ("lru", "rotary"):
            for sequence in range(4):
                hits = np.where(offsets < 0, 9.0, 5.0 + np.minimum(4, offsets / 5))
                own = quarter.at(experiment="topic_switch", case=case, policy=policy, sequence=sequence)
                parts.append(own.rows("hit_rate", "share", hits / 12, numerator=hits, denominator=12.0, offset=offsets))
    token, slot = (a.ravel() for a in np.meshgrid(np.arange(40), np.arange(4), indexing="ij"))
    for policy, step in (("ring", 1), ("lru", 9)):
        own = quarter.at(experiment="residency", layer=1, policy=policy, slots=4)
        parts.append(own.rows("expert", "id", (token // step + slot) % EXPERTS, offset=token, slot=slot))
    prefetching = list(prefetch_rows(CONTEXT))
    predicting = predictor_rows(CONTEXT)
    return parts + field_rows(CONTEXT) + claim_rows(CONTEXT) + validation_rows(CONTEXT) + prefetching + predicting
