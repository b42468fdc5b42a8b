"""C2: with a static hot set, misses surge when the context changes; with rotation they do not."""

from rgpu.experiments.suites.claim.arms import baselines, paper
from rgpu.experiments.suites.claim.context import Setting, at_arm
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.switching import AROUND, around, rise, rise_difference
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    MARGIN,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    below,
    shown,
)
from rgpu.policies.static_hot import StaticHot
from rgpu.results.statistics import MIN_CLUSTERS, Interval

PROFILED = 32
OWN = "static_hot, of the text's start"


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C2",
        "Static hot and cold sets suffer a surge of misses on a change of context, rotation does not",
        "KR 10-2026-0070380 [0011]",
        f"A to B texts: miss rate in the {AROUND} tokens after the switch minus the {AROUND} before, clustered by pair of "
        f"documents; the static set is profiled on the first {PROFILED} tokens of the text itself, so that it fits A",
        "static shows no surge, or rotary surges as much",
        CANNOT_TELL,
        "",
        figures=["claim_c2", "topic_switch"],
    )
    material, slots = setting.inputs.switch, setting.quarter
    arms = [
        *baselines(),
        Arm(OWN, StaticHot(scope="sequence", passes=PROFILED)),
        setting.chosen[setting.inputs.reference.name],
        paper("rotary, return", tau_return=0.7),
    ]
    found = {arm.label: around(setting.bench, material, arm, slots, "switch", 0) for arm in arms}
    for arm in arms:
        surge = rise(found[arm.label])
        at = at_arm(setting.context(material, "C2"), material, arm, slots)
        value = {"value": surge.estimate, "lo": surge.lo, "hi": surge.hi, "count": len(found[arm.label].after)}
        claim.rows.append(at.rows("surge", "share", **value))
    static, pairs = rise(found[OWN]), len(found[OWN].after)
    gap = rise_difference(found["rotary_paper"], found[OWN])
    claim.numbers = {
        "surge": {label: shown(rise(one)) for label, one in found.items()},
        "rotary_minus_static": shown(gap),
        "pairs_of_documents": pairs,
        "slots": slots,
        "beside": setting.beside(material, claim, slots),
    }
    claim.verdict, claim.why = decide(static, gap, pairs)
    return claim


def decide(static: Interval, gap: Interval, pairs: int) -> tuple[str, str]:
    """(verdict, why) from the static set's surge and rotary's minus it."""
    if pairs < MIN_CLUSTERS:
        return CANNOT_TELL, "too few pairs of documents"
    if static.hi < MARGIN:
        return NOT_SUPPORTED, "static shows no surge beyond half a point"
    word = below(gap, MARGIN, pairs)
    if word == "not lower":
        return NOT_SUPPORTED, "rotary surges as much as static, or more"
    if word == "lower" and static.lo > MARGIN:
        return SUPPORTED, "static surges, rotary surges less"
    return CANNOT_TELL, "the interval of rotary's surge minus static's reaches the margin, or static's surge does"
