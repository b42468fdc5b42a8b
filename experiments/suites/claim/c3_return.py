"""C3: when a context recurs, going back to the stored set recovers faster. A to B to A, return on and off."""

import numpy as np

from rgpu.experiments.suites.claim.arms import paper
from rgpu.experiments.suites.claim.context import Setting, at_arm
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.switching import AROUND, Around, around
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    against,
    rate,
    told,
)
from rgpu.policies.lru import Lru

TAUS = (0.3, 0.5, 0.7, 0.9)


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C3",
        "Return on recurrence helps when an earlier context comes back",
        "KR 10-2026-0070380 claim 3, [0051]",
        f"A to B to A texts: miss rate in the {AROUND} tokens after the return, with return on and off and under LRU; the "
        "similarity threshold is chosen on every other text and the rest are scored",
        "no faster recovery than LRU",
        CANNOT_TELL,
        "",
        figures=["claim_c3", "topic_switch"],
    )
    material, slots = setting.inputs.switch, setting.quarter
    taus = TAUS[1:3] if setting.quick else TAUS
    off, lru = paper("return off"), Arm("lru", Lru())
    by_tau = {t: around(setting.bench, material, paper("on", tau_return=t), slots, "switch_back", 1) for t in taus}
    texts = len(by_tau[taus[0]].after)
    tuning, scored = np.arange(0, texts, 2), np.arange(1, texts, 2)
    best = min(taus, key=lambda t: by_tau[t].after[tuning].sum() / by_tau[t].after_of[tuning].sum())
    found: dict[str, Around] = {
        "return on": by_tau[best].of(scored),
        **{arm.label: around(setting.bench, material, arm, slots, "switch_back", 1).of(scored) for arm in (off, lru)},
    }
    arms = {"return on": paper("return on", tau_return=best), "return off": off, "lru": lru}
    for label, one in found.items():
        at = at_arm(setting.context(material, "C3"), material, arms[label], slots)
        claim.rows.append(at.ratio("miss_after_return", one.after, one.after_of, keep=False))
    names = list(found)
    missed, of = np.stack([found[n].after for n in names]), np.stack([found[n].after_of for n in names])
    versus_lru = against(names, missed, of, "lru")["return on"]
    versus_off = against(names, missed, of, "return off")["return on"]
    claim.numbers = {
        "miss_rate_after_return": {n: rate(found[n].after, found[n].after_of) for n in names},
        "on_minus_lru": told(versus_lru),
        "on_minus_off": told(versus_off),
        "tau_return": best,
        "texts_scored": len(scored),
        "slots": slots,
    }
    if versus_lru.verdict == "lower" and versus_off.verdict == "lower":
        claim.verdict, claim.why = SUPPORTED, "return on misses less than return off and than LRU"
    elif versus_lru.verdict == "higher" or versus_lru.difference.lo > 0:
        claim.verdict, claim.why = NOT_SUPPORTED, "rotary with return recovers more slowly than LRU"
    else:
        claim.why = "the interval of a difference reaches zero, or too few texts"
    return claim
