"""Rows of the validation: measured and predicted time of each configuration, error and spread, and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rgpu.results.rows import Context

EXPERIMENT = "validation"


def rows_of(
    points: Sequence[Mapping[str, Any]], judged: Mapping[str, Any], machine: str, model: str, tokens: int,
    loads: Sequence[float], provenance: Mapping[str, Any],
) -> list[pa.Table]:  # fmt: skip
    """Case `measured` is the engine without what it waited for a processor, `wall` with it, `predicted` the replay on the
    clock, `without misses` the same as if all had hit."""
    whole = Context(
        experiment=EXPERIMENT, trace=model, source="rgpu reference model, greedy continuations of held-out prompts, live",
        trace_tokens=tokens, model=model, method="live", provenance=dict(provenance), common={"machine": machine},
    )  # fmt: skip
    simulated = whole.at(method="replay", simulated=True)
    tables = []
    for point in points:
        columns = {name: point[name] for name in ("policy", "slots", "miss", "batch")} | {"scope": "layer"}
        own, clock = whole.at(**columns), simulated.at(**columns)
        repeats = point["repeats_s"]
        tables += [
            own.rows("tpot_s", "s/token", point["measured_s"], case="measured", lo=min(repeats), hi=max(repeats),
                     count=len(repeats)),
            clock.rows("tpot_s", "s/token", point["predicted_s"], case="predicted"),
            clock.rows("tpot_s", "s/token", point["without_misses_s"], case="without misses"),
            clock.rows("tpot_error", "share", point["error"], case="predicted", baseline="measured"),
            clock.rows("tpot_error", "share", point["error_without_misses"], case="without misses", baseline="measured"),
            own.rows("tpot_s", "s/token", point["wall_s"], case="wall", count=len(repeats)),
            own.rows("tpot_spread", "share", point["spread"], case="measured", count=len(repeats)),
            own.rows("hit_rate", "share", point["hits"] / point["accesses"], numerator=point["hits"],
                     denominator=point["accesses"], case="measured",
                     verdict="identical" if point["identical_decisions"] else "different"),
        ]  # fmt: skip
    tables += [
        simulated.rows("median_error", "share", judged["median_error"], case="predicted", hi=judged["target"],
                       count=judged["configurations"], verdict=judged["verdict"]),
        whole.rows("median_spread", "share", judged["median_spread"], case="measured", count=judged["configurations"]),
        whole.rows("load_average", "processes", max(loads, default=0.0), case="measured", lo=min(loads, default=0.0)),
    ]  # fmt: skip
    return tables
