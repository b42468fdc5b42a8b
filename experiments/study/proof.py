"""The live proof: generate from a pool, and compare with the resident model and with replay of the run's own trace."""

import time
from typing import Any

from hydra import compose

from rgpu.experiments.generate import run as generate

CASES: tuple[tuple[str, str | None], ...] = (
    ("lru", None),
    ("lru", "gate_lookahead"),
    ("lfu", "previous_token"),
    ("rotary", None),
    ("static_hot", None),
)


def prove(
    model: str, trace: str, slots: int, tokens: int, cases: tuple[tuple[str, str | None], ...]
) -> list[dict[str, Any]]:
    """One check a case: tokens and logits bit-identical to the resident model, decisions identical to replay."""
    checks = []
    for policy, predictor in cases:
        began = time.perf_counter()
        overrides = [
            f"policy={policy}", f"model='{model}'", f"pool.slots={slots}", f"max_new_tokens={tokens}", "verify=true",
            f"calibration.trace='{trace}'",
        ]  # fmt: skip
        if predictor:
            overrides.append(f"predictor={predictor}")
        result = generate(compose("generate", overrides=overrides))
        same = [result[key] for key in ("identical_tokens", "identical_logits", "identical_decisions")]
        ahead = f" with {predictor} prefetch" if predictor else ""
        memory = result["memory"]
        checks.append(
            {
                "name": f"live {policy}{ahead}",
                "passed": all(same),
                "seconds": round(time.perf_counter() - began, 2),
                "detail": f"{slots} slots a layer, {len(result['token_ids'])} tokens, hit rate {result['hit_rate']:.3f}, "
                f"{result['decisions']} decisions; tokens, logits, replay identical: {same}; pool "
                f"{memory['pool_bytes'] / 1e6:.1f} MB of {memory['experts_bytes'] / 1e6:.1f} MB of experts, dense "
                f"{memory['dense_bytes'] / 1e6:.1f} MB, mapped {memory['store_mapped_bytes'] / 1e6:.1f} MB, peak "
                f"{memory['peak_rss_bytes'] / 1e6:.0f} MB",
            }
        )
    return checks
