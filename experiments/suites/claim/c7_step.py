"""C7: an adaptive step stabilises the hit rate. Variance of the hit rate over windows inside a sequence."""

from rgpu.experiments.suites.claim.arms import STEP, controls, paper
from rgpu.experiments.suites.claim.context import Setting, at_arm
from rgpu.experiments.suites.claim.scoring import WINDOW
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    agreed,
    below,
    mean_difference,
    mean_of,
    rate,
    shown,
)

SHARE = 0.05  # of the fixed step's variance: a smaller change decides nothing
WORDS = {"lower": SUPPORTED, "not lower": NOT_SUPPORTED}


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C7",
        "Adapting the step stabilises the hit rate",
        "KR 10-2026-0070380 [0049]",
        f"variance over windows of {WINDOW} tokens of the hit rate, a fixed step against the adaptive one, by sequence",
        "no drop in variance",
        CANNOT_TELL,
        "",
        figures=["claim_c7"],
    )
    words = {}
    for material in setting.materials:
        arms = [paper("fixed step", step=STEP), paper("adaptive step", adaptive_step=True)]
        arms.append(paper("adaptive step, cycle, window", adaptive_step=True, adaptive_cycle=True, adaptive_window=True,
                          transforms="projection+trajectory"))  # fmt: skip
        arms += controls()
        found = {a.label: setting.bench.counts(material, a, setting.quarter) for a in arms}
        fixed = found["fixed step"].window_variance
        gap, sequences = mean_difference(found["adaptive step"].window_variance, fixed)
        for arm in arms:
            claim.rows += setting.rows(material, "C7", arm, setting.quarter)
            mean, lo, hi = mean_of(found[arm.label].window_variance)
            at = at_arm(setting.context(material, "C7"), material, arm, setting.quarter)
            claim.rows.append(at.rows("window_variance", "variance of share", mean, lo=lo, hi=hi))
        claim.numbers[material.name] = {
            "window_variance": {n: mean_of(c.window_variance) for n, c in found.items()},
            "adaptive_minus_fixed": shown(gap),
            "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
            "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
            "slots": setting.quarter,
            "floor": setting.floor(material, setting.quarter),
        }
        words[material.name] = WORDS.get(below(gap, SHARE * mean_of(fixed)[0], sequences), CANNOT_TELL)
    claim.verdict = agreed(words)
    claim.why = "; ".join(f"{n}: {w}" for n, w in words.items()) + (
        ". Decided by the interval of adaptive minus fixed, a twentieth of the fixed step's variance aside"
    )
    return claim
