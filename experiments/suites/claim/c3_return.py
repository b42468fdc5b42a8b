"""C3: when a context recurs, going back to the stored set recovers faster. A to B to A, return on and off."""

from dataclasses import replace

import numpy as np

from rgpu.experiments.suites.claim.arms import controls, described
from rgpu.experiments.suites.claim.context import Setting, at_arm
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.switching import AROUND, Around, after_difference, around, rise, rise_difference
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    MARGIN,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    below,
    rate,
    shown,
)
from rgpu.policies.lru import Lru
from rgpu.results.statistics import Interval

TAUS = (0.3, 0.5, 0.7, 0.9)
DEPTHS = (8, 256)  # contexts remembered: the default, and more than a text has tokens


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C3",
        "Return on recurrence helps when an earlier context comes back",
        "KR 10-2026-0070380 claim 3, [0051]",
        f"A to B to A texts: miss rate in the {AROUND} tokens after the return, and how much of it exceeds the settled rate "
        f"(the {AROUND} tokens before the first switch), with return on and off and under LRU; threshold and depth of the "
        "memory are chosen on every other pair of documents and the rest are scored",
        "no faster recovery than LRU",
        CANNOT_TELL,
        "",
        figures=["claim_c3", "topic_switch"],
    )
    material, slots = setting.inputs.switch, setting.quarter
    chosen = setting.chosen[setting.inputs.reference.name]
    taus, depths = (TAUS[1:3], DEPTHS[1:]) if setting.quick else (TAUS, DEPTHS)

    def seen(arm: Arm) -> Around:
        return around(setting.bench, material, arm, slots, "switch_back", 1)

    options = [
        Arm("return on", replace(chosen.policy, tau_return=t, return_depth=d))  # type: ignore[type-var]
        for t in taus
        for d in depths
    ]
    tried = [seen(arm) for arm in options]
    pairs = np.arange(len(tried[0].after))
    tuning, scored = pairs[::2], pairs[1::2]
    best = min(range(len(options)), key=lambda i: tried[i].of(tuning).after_rate)
    off, lru = Arm("return off", replace(chosen.policy, tau_return=None)), Arm("lru", Lru())  # type: ignore[type-var]
    arms = [options[best], off, lru, *controls()]
    found = {arm.label: seen(arm).of(scored) for arm in arms}
    for arm in arms:
        one, at = found[arm.label], at_arm(setting.context(material, "C3"), material, arm, slots)
        excess = rise(one)
        claim.rows.append(at.ratio("miss_after_return", one.after, one.after_of, keep=False))
        claim.rows.append(at.rows("return_excess", "share", excess.estimate, lo=excess.lo, hi=excess.hi))
    on = found["return on"]
    faster = rise_difference(on, found["lru"], confidence=0.975)
    helped = after_difference(on, found["return off"], confidence=0.975)
    claim.numbers = {
        "miss_rate_after_return": {n: rate(one.after, one.after_of) for n, one in found.items()},
        "above_settled": {n: shown(rise(one)) for n, one in found.items()},
        "above_settled_minus_lru": shown(faster),
        "on_minus_off": shown(helped),
        "configuration": described(options[best]),
        "pairs_scored": len(scored),
        "slots": slots,
        "floor": setting.floor(material, slots),
    }
    claim.verdict, claim.why = decide(faster, helped, len(scored))
    return claim


def decide(faster: Interval, helped: Interval, pairs: int) -> tuple[str, str]:
    """(verdict, why) from what return on misses above its settled rate minus LRU's, and from return on minus off."""
    recovery, use = (below(d, MARGIN, pairs) for d in (faster, helped))
    if recovery == "lower" and use == "lower":
        return SUPPORTED, "with return it is back at its settled rate sooner than LRU, and misses less than without"
    if recovery == "not lower":
        return NOT_SUPPORTED, "with return it is back at its settled rate no sooner than LRU"
    if use == "not lower":
        return NOT_SUPPORTED, "return on misses no less than return off"
    return CANNOT_TELL, "the interval of a difference reaches the margin, or too few pairs of documents"
