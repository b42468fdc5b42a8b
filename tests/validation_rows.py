"""Made-up rows of the validation suite, for its figure."""

import pyarrow as pa

from rgpu.results.rows import Context


def validation_rows(context: Context) -> list[pa.Table]:
    at = context.at(experiment="validation")
    parts = []
    for i, policy in enumerate(("lru", "rotary")):
        for miss in ("fetch", "cpu"):
            for batch in (1, 4):
                own = at.at(policy=policy, miss=miss, batch=batch, slots=8)
                live = 0.005 * batch * (1 + 0.2 * i)
                parts.append(
                    own.rows("tpot_s", "s/token", live, case="measured", lo=0.9 * live, hi=1.2 * live, count=5)
                )
                parts.append(own.rows("tpot_s", "s/token", 1.05 * live, case="predicted"))
    parts.append(at.rows("median_error", "share", 0.05, hi=0.1, count=8, verdict="too few configurations"))
    parts.append(at.rows("median_spread", "share", 0.02, count=8))
    return parts
