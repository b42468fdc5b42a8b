"""Made-up rows for the figures of the claims."""

import pyarrow as pa

from rgpu.results.rows import Context

METRICS = {
    "c2": ("surge",), "c3": ("miss_after_return",), "c4": ("hit_rate", "loads_per_token"),
    "c6": ("hit_rate", "loads_per_token"), "c7": ("window_variance", "hit_rate"), "c8": ("hit_rate", "loads_per_token"),
    "c9": ("hit_rate", "loads_per_token"),
}  # fmt: skip


def claim_rows(context: Context) -> list[pa.Table]:
    parts = []
    at = context.at(kind="proactive", scope="layer", reset="sequence", slots=8, capacity_share=0.25)
    for name, metrics in METRICS.items():
        for i, policy in enumerate(("lru", "static_hot", "rotary_paper")):
            for metric in metrics:
                value = 0.3 + 0.1 * i
                own = at.at(experiment=f"claim_{name}", policy=policy)
                parts.append(own.rows(metric, "share", value, lo=value - 0.02, hi=value + 0.02))
    for i, policy in enumerate(("lru", "rotary_paper")):
        for slots in (4, 8):
            own = at.at(experiment="claim_c1", policy=policy, slots=slots, capacity_share=slots / 32, case="capacity")
            parts.append(own.rows("hit_rate", "share", 0.05 * slots + 0.1 * i))
        for step in (1, 2):
            own = at.at(experiment="claim_c1", policy=policy, case=f"dial:step {step}")
            parts += [own.rows("hit_rate", "share", 0.3 * step), own.rows("loads_per_token", "loads/token", 4.0 * step)]
        own = at.at(experiment="claim_c1", policy=policy, case="rtx4090, fetch", simulated=True)
        parts.append(own.rows("tpot", "s/token", 0.02 + 0.01 * i))
    return parts
