"""Made-up rows of the prefetching figures."""

from collections.abc import Iterator

import pyarrow as pa

from rgpu.results.rows import Context


def prefetch_rows(context: Context) -> Iterator[pa.Table]:
    at = context.at(experiment="prefetch_time", scope="layer", reset="sequence", capacity_share=0.25, miss="fetch")
    for machine in ("rtx4060_laptop", "rtx4090"):
        own = at.at(machine=machine)
        yield own.rows("tpot", "s/token", 0.01, policy="lru", predictor="none", case="none")
        for i, predictor in enumerate(("gate_lookahead", "linear", "oracle")):
            for j, (planner, policy) in enumerate((("top_k", "lru"), ("expected_value", "joint_forecast"))):
                arm = own.at(predictor=predictor, case=planner, policy=policy)
                saved = -0.001 + 0.001 * i + 0.0015 * j
                yield arm.rows(
                    "tpot_saved",
                    "s/token",
                    saved,
                    lo=saved - 2e-4,
                    hi=saved + 2e-4,
                    verdict="better" if saved > 2e-4 else "cannot tell",
                    x=0.7 + 0.15 * i,
                )
                for k, end in enumerate(("useful", "late", "wasted", "cancelled", "pending", "harmful")):
                    yield arm.rows(f"bytes_{end}", "bytes/pass", 1e6 * (6 - k) / (1 + i))
    at = context.at(experiment="prefetch_break_even", lag=1, capacity_share=0.25, predictor="oracle")
    for case, policy in (("sure", "lru"), ("sure", "joint_forecast"), ("calibrated", "lru")):
        for i, link in enumerate(("6", "25", "100")):
            for j, compute in enumerate((1e-4, 4e-4, 1.6e-3)):
                own = at.at(case=case, policy=policy, machine=link, x=compute)
                yield own.rows("recall_needed", "share", 2.0 if i + j < 1 else 1.1 - 0.2 * (i + j))
                yield own.rows("worst_saved", "share", -0.1 * (i + j) if case == "sure" else 0.0)
                yield own.rows("fastest_handler", "rank", float((i + j) % 4))
                yield own.rows("copy", "s", 2.2e-3 / 4**i)
    yield from live_rows(context)


def live_rows(context: Context) -> Iterator[pa.Table]:
    for machine in ("direct file reads", "emulated link of 0.1 GB/s"):
        at = context.at(experiment="prefetch_live", machine=machine, slots=8, capacity_share=0.25, method="live")
        yield at.rows("tpot_ratio", "share", 0.4, case="resident")
        yield at.rows("tpot_ratio", "share", 0.5, case="bound", method="replay", simulated=True)
        for i, predictor in enumerate(("none", "linear", "oracle")):
            arm = at.at(predictor=predictor, case="none" if i == 0 else "top_k", policy="lru")
            word = "better" if predictor == "oracle" else "cannot tell"
            yield arm.rows("tpot_ratio", "share", 1 - 0.1 * i, lo=0.9 - 0.1 * i, hi=1.1 - 0.1 * i, verdict=word)
            yield arm.rows("wall_ratio", "share", 1.02 - 0.1 * i, lo=0.9 - 0.1 * i, hi=1.1 - 0.1 * i)
            yield arm.rows("tpot_ratio", "share", 1 - 0.2 * i, method="replay", simulated=True)
