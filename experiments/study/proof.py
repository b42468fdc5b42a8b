"""The live proof: generate from a pool, and compare with the resident model and with replay of the run's own trace.

Every case is a process of its own (`rgpu generate ... verify=true`), so that its peak memory is its own.
"""

import json
import subprocess
import sys
import time
from typing import Any

from rgpu.errors import ConsistencyError

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
    return [_prove(model, trace, slots, tokens, *case) for case in cases]


def _prove(model: str, trace: str, slots: int, tokens: int, policy: str, predictor: str | None) -> dict[str, Any]:
    began = time.perf_counter()
    words = [
        f"policy={policy}", f"model={model}", f"pool.slots={slots}", f"max_new_tokens={tokens}", "verify=true",
        f"calibration.trace={trace}", *([f"predictor={predictor}"] if predictor else []),
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "rgpu.cli", "generate", *words], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if not lines:
        raise ConsistencyError(
            f"rgpu generate {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    result = json.loads(lines[-1])
    same = [result[key] for key in ("identical_tokens", "identical_logits", "identical_decisions")]
    ahead = f" with {predictor} prefetch" if predictor else ""
    sizes = {
        name: value for name, value in result["memory"].items() if isinstance(value, int)
    }  # without caps some are null
    memory = {name: f"{value / 1e6:.1f} MB" for name, value in sizes.items()}
    return {
        "name": f"live {policy}{ahead}",
        "passed": all(same),
        "seconds": round(time.perf_counter() - began, 2),
        "detail": f"{slots} slots a layer, {len(result['token_ids'])} tokens, hit rate {result['hit_rate']:.3f}, "
        f"{result['decisions']} decisions; tokens, logits, replay identical: {same}; pool {memory['pool_bytes']} of "
        f"{memory['experts_bytes']} of experts, dense {memory['dense_bytes']}, file mapped {memory['store_mapped_bytes']}; "
        f"private memory grew by {memory['rss_anon_growth_bytes']}, peak of the process {memory['peak_rss_bytes']}",
    }
