"""Made-up rows for the figures that recompute published ones, with the published values beside them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from rgpu.experiments.suites.field import figures
from rgpu.experiments.suites.published import marks
from rgpu.results.rows import Context

POLICIES = ("lru", "lfru", "lfu_perfect", "least_stale", "static_hot", "belady", "belady_bypass")
SHARES = (0.05, 0.2, 0.4)


def field_rows(context: Context) -> list[pa.Table]:
    parts = [
        table for make in (_misses, _orders, _pools, _speeds, _domains, _recall, _batches) for table in make(context)
    ]
    for module in figures():
        parts += marks.value_rows(module.ABOUT.figure, module.ABOUT.id, context.trace, {})
    return parts


def _spread(value: float) -> dict[str, float]:
    return {"lo": value - 0.02, "hi": value + 0.02}


def _misses(context: Context) -> Iterator[pa.Table]:
    for batch, reset in ((1, "sequence"), (4, "none")):
        for share in SHARES:
            at = context.at(experiment="field_miss_gap", batch=batch, reset=reset, scope="layer", capacity_share=share)
            for i, policy in enumerate(POLICIES):
                value = 0.8 - share - 0.04 * i
                yield at.rows("effective_miss", "share", value, policy=policy, **_spread(value))
            for metric, value in (("gap", share + 0.1), ("admission_share", 0.6 - share)):
                yield at.rows(metric, "share", value, policy="lfru", **_spread(value))


def _orders(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="field_granularity", batch=4)
    for i, policy in enumerate(POLICIES):
        for j, case in enumerate(("event-atomic", "ascending", "random")):
            yield at.rows("effective_miss", "share", 0.3 + 0.02 * j, policy=policy, case=case, **_spread(0.3))
            if j:
                yield at.rows("inflation", "share", 0.1 * i, policy=policy, case=case, **_spread(0.1 * i))
    at = context.at(experiment="field_pass_order", batch=4)
    for j, case in enumerate(("as recorded", "passes permuted")):
        for policy in POLICIES:
            yield at.rows("effective_miss", "share", 0.3 + 0.02 * j, policy=policy, case=case)
        yield at.rows("gap", "share", 0.4 - 0.1 * j, policy="lfru", case=case, **_spread(0.4 - 0.1 * j))


def _pools(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="field_token_cycle")
    yield at.rows("zero_edge", "cycles", 0.9)
    for i, case in enumerate(("lru, global", "belady, global", "lru, a pool a layer")):
        for x in (0.25, 1.0, 2.0):
            yield at.rows("hit_rate", "share", 0.2 * x + 0.1 * i, case=case, x=x, **_spread(0.2 * x + 0.1 * i))
    for case in ("RAM over disk", "GPU pool over RAM over disk"):
        for i, policy in enumerate(("lru", "belady")):
            at = context.at(experiment="field_disk_staircase", case=case, policy=policy)
            for x in (0.25, 1.0, 2.0):
                yield at.rows("hit_rate", "share", 0.2 * x + 0.1 * i, x=x)
                yield at.rows("tpot", "s/token", 0.4 / (x + i), x=x, simulated=True)


def _speeds(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="field_hit_speed")
    for i, policy in enumerate(POLICIES):
        yield at.rows("hit_rate", "share", 0.5 + 0.05 * i, policy=policy)
        for machine in ("laptop", "desktop"):
            where: dict[str, Any] = {"machine": machine, "miss": "fetch", "simulated": True}
            yield at.rows("tokens_per_s", "tokens/s", 20 + (i * 7) % 5, policy=policy, **where)
    for miss in ("fetch", "cpu", "split", "zero_copy"):
        for share in SHARES:
            at = context.at(experiment="field_budget_handlers", machine="laptop", miss=miss, simulated=True)
            yield at.rows("tokens_per_s", "tokens/s", 10 + 50 * share, capacity_share=share, x=share + 0.3)


def _domains(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="field_hot_transfer", capacity_share=0.25)
    for text in ("prose", "code"):
        for profile in ("prose", "code", "all domains"):
            yield at.rows(
                "hit_rate", "share", 0.4 + 0.1 * (text == profile), policy="static_hot", case=profile, domain=text
            )
        yield at.rows("hit_rate", "share", 0.6, policy="lru", domain=text)
    for policy in ("static_hot", "lru"):
        yield at.rows("hit_rate", "share", 0.5, policy=policy, case="second half of a stream", **_spread(0.5))


def _recall(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="field_plain_predictors")
    for i, predictor in enumerate(("popularity", "previous_token", "token_id")):
        for width in (2, 4):
            yield at.rows("recall", "share", 0.2 + 0.1 * i + 0.05 * width, predictor=predictor, width=width)
    yield at.rows("recall_chance", "share", np.array([0.1, 0.2]), width=np.array([2, 4]))


def _batches(context: Context) -> Iterator[pa.Table]:
    for batch in (1, 2, 4):
        at = context.at(experiment="field_link_batch", batch=batch)
        yield at.rows("union_over_uniform", "ratio", 1 - 0.05 * batch)
        for x in (1.0, 16.0, 256.0):
            yield at.rows("tpot", "s/token", 0.1 * batch / x + 0.01, x=x, simulated=True)
