"""C6: several heads cover each other's misses. H = 1, 2, 4, 8 with the same slots in all."""

from rgpu.experiments.suites.claim.arms import STEP, paper
from rgpu.experiments.suites.claim.context import Setting, stacked
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    MARGIN,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    against,
    rate,
    told,
)

HEADS = (1, 2, 4, 8)


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C6",
        "Heads cover each other's misses",
        "KR 10-2026-0070380 [0048]",
        "hit rate with 1, 2, 4 and 8 heads over the same slots, each head with its own part of the input, W_r and slots",
        "more heads are no better than one",
        CANNOT_TELL,
        "",
        figures=["claim_c6"],
    )
    words = {}
    for material in setting.materials:
        slots = max(setting.quarter, max(HEADS) + 4)  # a slot for each of eight heads, one for staging
        heads = HEADS
        arms = [paper(f"{h} head" + "s" * (h > 1), heads=h, step=STEP) for h in heads]
        found = {a.label: setting.bench.counts(material, a, slots) for a in arms}
        for arm in arms:
            claim.rows += setting.rows(material, "C6", arm, slots)
        names = list(found)
        versus = against(names, *stacked(list(found.values()), "hits", "accesses"), names[0])
        claim.numbers[material.name] = {
            "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
            "minus_one_head": {n: told(c) for n, c in versus.items()},
            "slots": slots,
        }
        if any(c.verdict == "higher" for c in versus.values()):
            words[material.name] = SUPPORTED
        else:
            none = all(c.difference.hi < MARGIN for c in versus.values())
            words[material.name] = NOT_SUPPORTED if none else CANNOT_TELL
    claim.verdict = next(iter(words.values())) if len(set(words.values())) == 1 else CANNOT_TELL
    claim.why = "; ".join(f"{n}: {w}" for n, w in words.items()) + ". No better: every interval ends under half a point"
    return claim
