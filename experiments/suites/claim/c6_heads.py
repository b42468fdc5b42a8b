"""C6: several heads cover each other's misses. H = 1, 2, 4, 8 with the same slots in all."""

from rgpu.experiments.suites.claim.arms import STEP, paper
from rgpu.experiments.suites.claim.context import Setting
from rgpu.experiments.suites.claim.verdicts import CANNOT_TELL, Claim, above_one, agreed, rate, versus

HEADS = (1, 2, 4, 8)


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C6",
        "Heads cover each other's misses",
        "KR 10-2026-0070380 [0048]",
        "hits and loads with 1, 2, 4 and 8 heads over the same slots, each head with its own part of the input, W_r and slots",
        "more heads are no better than one",
        CANNOT_TELL,
        "",
        figures=["claim_c6"],
    )
    words = {}
    for material in setting.materials:
        slots = max(setting.quarter, max(HEADS) + 4)  # a slot for each of eight heads, one for staging
        arms = [paper(f"{h} head" + "s" * (h > 1), heads=h, step=STEP) for h in HEADS]
        found = {a.label: setting.bench.counts(material, a, slots) for a in arms}
        for arm in arms:
            claim.rows += setting.rows(material, "C6", arm, slots)
        one, *more = found
        against = {n: versus(found[n], {one: found[one]}, tests=len(more))[one] for n in more}
        claim.numbers[material.name] = {
            "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
            "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
            "minus_one_head": {n: v.told() for n, v in against.items()},
            "slots": slots,
            "beside": setting.beside(material, claim, slots),
        }
        words[material.name] = above_one([v.word for v in against.values()])
    claim.verdict = agreed(words)
    claim.why = "; ".join(f"{n}: {w}" for n, w in words.items()) + (
        ". Supported: some number of heads is better than one; not supported: none is"
    )
    return claim
