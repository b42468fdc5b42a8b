"""C2: with a static hot set, misses surge when the context changes; with rotation they do not."""

from rgpu.experiments.suites.claim.arms import baselines, paper
from rgpu.experiments.suites.claim.context import Setting, at_arm
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.switching import AROUND, around
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    MARGIN,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    mean_difference,
    mean_of,
)
from rgpu.policies.static_hot import StaticHot
from rgpu.results.statistics import bootstrap

PROFILED = 32
OWN = "static_hot, of the text's start"


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C2",
        "Static hot and cold sets suffer a surge of misses on a change of context, rotation does not",
        "KR 10-2026-0070380 [0011]",
        f"A to B texts: miss rate in the {AROUND} tokens after the switch minus the {AROUND} before, one a text; the static "
        f"set is profiled on the first {PROFILED} tokens of the text itself, so that it fits A",
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
    surge = {}
    for arm in arms:
        found = around(setting.bench, material, arm, slots, "switch", 0)
        surge[arm.label] = found.surge_S
        at = at_arm(setting.context(material, "C2"), material, arm, slots)
        interval = bootstrap(found.surge_S, found.surge_S * 0 + 1)
        value = {"value": interval.estimate, "lo": interval.lo, "hi": interval.hi, "count": len(found.surge_S)}
        claim.rows.append(at.rows("surge", "share", **value))
    static = mean_of(surge[OWN])
    gap, word = mean_difference(surge["rotary_paper"], surge[OWN])
    claim.numbers = {
        "surge": {label: mean_of(values) for label, values in surge.items()},
        "rotary_minus_static": gap,
        "texts": len(surge["lru"]),
        "slots": slots,
    }
    if static[2] < MARGIN:
        claim.verdict, claim.why = NOT_SUPPORTED, "static shows no surge beyond half a point"
    elif static[1] > 0 and word == "lower":
        claim.verdict, claim.why = SUPPORTED, "static surges, rotary surges less"
    elif word == "higher" or gap[1] > -MARGIN:
        claim.verdict, claim.why = NOT_SUPPORTED, "rotary surges as much as static, or more"
    else:
        claim.why = "the interval of rotary's surge minus static's reaches zero, or static's surge does"
    return claim
