"""Values that others published, each with its source: facts only, drawn as markers of their own and compared by `judge`.

`figure` is the id of the figure here that shows it, `metric` and the columns place it there. Shares are fractions.
"""

from typing import Any

from rgpu.experiments.suites.published.predictor_values import PREDICTORS
from rgpu.experiments.suites.published.value import Value

ZHANG = "Zhang 2026, arXiv 2608.07911"
GAP_CSV = f"{ZHANG}, gap-attribution.csv (held-out, batch 8)"
EDGE = "BigMoeOnEdge"
KIMI = "kimi-k3-in-c docs/PERFORMANCE.md"
LLAMA = "llama.cpp PR 27861"
CODACUS = "thecodacus/llama.cpp PR 5"
IMP = "kekzl/imp PR 1374"
OMLX = "jundot/omlx PR 2595"


def _zhang_gap() -> list[Value]:
    """Per-layer pools, 128 experts, top-8, 48 layers: share of all blocks; miss of LFRU, forced and bypass Belady."""
    table = (
        (0.046875, 0.597899, 0.588854, 0.588294),
        (0.304688, 0.262942, 0.202938, 0.163632),
        (0.335938, 0.235868, 0.165324, 0.139182),
        (0.398438, 0.181484, 0.113180, 0.100239),
        (0.400065, 0.180108, 0.112007, 0.099329),
    )
    out = []
    about = "Qwen3-30B-A3B-like (48 x 128, top-8), batch 8"
    for share, *misses in table:
        at = {"capacity_share": share, "batch": 8}
        for policy, miss in zip(("lfru", "belady", "belady_bypass"), misses, strict=True):
            out.append(Value("miss_gap", "effective_miss", miss, "share", GAP_CSV, about, {**at, "policy": policy}))
        lfru, forced, bypass = misses
        out.append(Value("miss_gap", "gap", 1 - bypass / lfru, "share", GAP_CSV, about, at))
        admission = (forced - bypass) / (lfru - bypass)
        out.append(Value("miss_gap", "admission_share", admission, "share", GAP_CSV, about, at))
    for batch, gap in ((1, 0.4697), (4, 0.4812), (16, 0.3332)):
        at = {"capacity_share": 0.4, "batch": batch}
        out.append(Value("miss_gap", "gap", gap, "share", f"{ZHANG}, table 9", f"the same, batch {batch}", at))
    table_14 = f"{ZHANG}, table 14"
    at = {"capacity_share": 0.4, "batch": 2}
    out.append(Value("miss_gap", "gap", 0.5042, "share", table_14, "the same, batch 2", at))
    out.append(Value("miss_gap", "admission_share", 0.0340, "share", table_14, "the same, batch 2", at))
    return out


def _zhang_replay() -> list[Value]:
    about = "128 experts, per-layer pools, 40 %, batch 8, held-out"
    inflation = {
        "lru": 0.274,
        "lfru": 0.285,
        "least_stale": 0.274,
        "lfu_perfect": 0.034,
        "belady_bypass": 0.043,
        "static_hot": 0.0,
    }
    at = {"case": "ascending", "batch": 8}
    out = [
        Value("granularity", "inflation", v, "share", f"{ZHANG}, table 2", about, {**at, "policy": p})
        for p, v in inflation.items()
    ]
    for case, gap in (("as recorded", 0.4485), ("passes permuted", 0.309)):
        out.append(Value("pass_order", "gap", gap, "share", f"{ZHANG}, section 6.5", about, {"case": case, "batch": 8}))
    return out


def _cycle() -> list[Value]:
    """Hit rate of one global LRU cache over its size in token cycles (bytes that one token routes to)."""
    kimi = "Kimi K3 (16 of 896 a layer, 25.83 GB a token), 8-token runs under a memory cap"
    points = (
        (0.49, 0.0),
        (2.79, 0.0),
        (4.39, 0.0),
        (7.58, 0.0),
        (10.80, 0.0),
        (17.19, 0.0),
        (23.59, 0.0),
        (36.39, 0.299),
        (49.19, 0.322),
        (61.99, 0.331),
        (77.00, 0.355),
        (108.98, 0.438),
    )
    out = [
        Value(
            "token_cycle",
            "hit_rate",
            hit,
            "share",
            f"{KIMI}, memory ladder",
            kimi,
            {"x": gb / 25.83, "case": "lru, global"},
        )
        for gb, hit in points
    ]
    out.append(
        Value(
            "token_cycle",
            "hit_rate",
            0.0,
            "share",
            f"{EDGE} docs/cache-sizing.md",
            "gpt-oss-120b, top-4, 1,500 of 1,815 MiB",
            {"x": 1500 / 1815, "case": "lru, global"},
        )
    )
    return out


def _staircase() -> list[Value]:
    about = "Kimi K3, 100,096 recorded requests over 82,633 experts; decode that recomputes its context"
    points = (
        (455, 0.362, 0.394),
        (1823, 0.362, 0.490),
        (3647, 0.362, 0.617),
        (7294, 0.492, 0.846),
        (10941, 0.900, 0.900),
    )
    cycle = 16 * 92  # experts a token routes to
    return [
        Value(
            "disk_staircase",
            "hit_rate",
            hit,
            "share",
            f"{KIMI}, replayed capacity",
            about,
            {"x": slots / cycle, "policy": policy},
        )
        for slots, *hits in points
        for policy, hit in zip(("lru", "belady"), hits, strict=True)
    ]


def _transfer() -> list[Value]:
    return [
        Value(
            "hot_transfer",
            "hit_rate",
            0.10,
            "share",
            LLAMA,
            "Qwen3.8-Flash-Next, 32 of 512: list of one half on the other",
            {"case": "half of the corpus", "policy": "static_hot"},
        ),
        Value(
            "hot_transfer",
            "hit_rate",
            0.0625,
            "share",
            LLAMA,
            "the same: share of experts resident",
            {"case": "uniform"},
        ),
        Value(
            "hot_transfer",
            "hit_rate",
            0.67,
            "share",
            LLAMA,
            "the same model, LRU with 64 of 512 slots",
            {"case": "half of the corpus", "policy": "lru"},
        ),
        Value(
            "hot_transfer",
            "own_minus_other",
            0.15,
            "share",
            "field survey, hot sets across projects (91 against 76 %)",
            "hot profile on its own project minus on another",
            {"case": "across domains"},
        ),
        Value(
            "hot_transfer",
            "own_minus_other",
            0.01,
            "share",
            CODACUS,
            "profile merged over workloads minus specialists, at most",
            {"case": "merged profile"},
        ),
    ]


def _predictors() -> list[Value]:
    out = []
    for model, previous, popular in (
        ("Qwen3-30B-A3B", 0.380, 0.376),
        ("gemma-4-26B-A4B", 0.357, 0.396),
        ("gpt-oss-120b", 0.179, 0.267),
    ):
        for predictor, value in (("previous_token", previous), ("popularity", popular)):
            out.append(
                Value(
                    "plain_predictors",
                    "recall",
                    value,
                    "share",
                    f"{EDGE} route traces",
                    model,
                    {"predictor": predictor, "domain": model},
                )
            )
    out.append(
        Value(
            "plain_predictors",
            "recall",
            0.51,
            "share",
            "splch/predictability-aware-training",
            "a small MoE of its own",
            {"predictor": "token_id", "domain": "splch"},
        )
    )
    out.append(
        Value(
            "plain_predictors",
            "recall",
            0.15,
            "share",
            "splch/predictability-aware-training",
            "a small MoE of its own",
            {"predictor": "popularity", "domain": "splch"},
        )
    )
    return out


def _speed() -> list[Value]:
    qwen = "Qwen3-30B-A3B Q4_K_M, experts in host memory, link measured at 51 GB/s"
    out = [
        Value("budget_handlers", "tokens_per_s", speed, "tokens/s", IMP, qwen, {"x": hit, "miss": "fetch"})
        for hit, speed in ((0.366, 10.51), (0.741, 20.99), (0.894, 30.51), (0.962, 51.86))
    ]
    about = "gemma-4-26B-A4B streamed from SSD, Apple; 122.5 tokens/s resident"
    out += [
        Value("budget_handlers", "tokens_per_s", speed, "tokens/s", OMLX, about, {"x": hit, "miss": "fetch"})
        for hit, speed in ((0.45, 29.3), (0.67, 40.1), (0.89, 59.4))
    ]
    verdict = f"{EDGE} layer-lfu-verdict.md"
    phone = "Qwen3-30B-A3B Q4_K_M, top-6, 3,000 MiB, phone"
    for policy, hit, speed in (("lru", 0.708, 5.191), ("layer_lfu", 0.728, 3.792)):  # means of the two passes
        out.append(Value("hit_speed", "tokens_per_s", speed, "tokens/s", verdict, phone, {"x": hit, "policy": policy}))
        out.append(Value("hit_speed", "hit_rate", hit, "share", verdict, phone, {"policy": policy}))
    return out


def _unions() -> list[Value]:
    about = "128 experts, top-8, continuous batching of held-out requests"
    uniform = {b: 128 * (1 - (1 - 8 / 128) ** b) for b in (1, 2, 4, 8, 16)}
    measured = {1: 8.00, 2: 15.02, 4: 26.58, 8: 42.63, 16: 59.21}
    source = f"{ZHANG}, table 9"
    out = [Value("link_batch", "union", u, "experts", source, about, {"batch": b}) for b, u in measured.items()]
    return out + [
        Value("link_batch", "union_over_uniform", u / uniform[b], "ratio", source, about, {"batch": b})
        for b, u in measured.items()
    ]


VALUES: tuple[Value, ...] = (
    *_zhang_gap(),
    *_zhang_replay(),
    *_cycle(),
    *_staircase(),
    *_transfer(),
    *_predictors(),
    *_speed(),
    *_unions(),
    *PREDICTORS,
)


def values_of(figure: str) -> list[Value]:
    return [v for v in VALUES if v.figure == figure]


def published(figure: str, metric: str, **columns: Any) -> float:
    """The one value of a figure with these columns."""
    found = [
        v.value
        for v in values_of(figure)
        if v.metric == metric and all(v.columns.get(k) == c for k, c in columns.items())
    ]
    if len(found) != 1:
        raise KeyError(f"{figure}/{metric}/{columns}: {len(found)} published values")
    return found[0]
