"""C9: rotation itself matters. The orthogonal constraint against everything that does without it, at one step limit."""

from rgpu.experiments.suites.claim.arms import STEP, controls, paper
from rgpu.experiments.suites.claim.context import Setting
from rgpu.experiments.suites.claim.verdicts import CANNOT_TELL, Claim, above_all, agreed, rate, versus

WITHOUT = ("identity W_r", "random W_r", "linear W_r", "linear_residency", "router_lag")


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C9",
        "Rotation itself matters",
        "KR 10-2026-0070380 [0063]",
        f"hits and loads at {STEP} slots a step: a calibrated orthogonal W_r against the identity, a random and an "
        "unconstrained W_r, an unconstrained linear forecast and the router's last logits; and the ring in phase order "
        "against a random ring",
        "no gap",
        CANNOT_TELL,
        "",
        figures=["claim_c9"],
    )
    words, rings = {}, {}
    for material in setting.materials:
        turns = ("calibrated", "identity", "random", "linear")
        arms = [paper(f"{w} W_r", rotation=w, step=STEP) for w in turns]
        arms += [
            *controls(),
            paper("phase, ring by phase", transforms="phase", step=STEP),
            paper("phase, random ring", transforms="phase", ring_order="random", step=STEP),
        ]
        found = {a.label: setting.bench.counts(material, a, setting.quarter) for a in arms}
        for arm in arms:
            claim.rows += setting.rows(material, "C9", arm, setting.quarter)
        against = versus(found["calibrated W_r"], {n: found[n] for n in WITHOUT})
        random = "phase, random ring"
        ordered = versus(found["phase, ring by phase"], {random: found[random]})[random]
        claim.numbers[material.name] = {
            "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
            "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
            "calibrated_minus": {n: v.told() for n, v in against.items()},
            "ring_by_phase_minus_random_ring": ordered.told(),
            "slots": setting.quarter,
            "floor": setting.floor(material, setting.quarter),
        }
        words[material.name] = above_all([v.word for v in against.values()])
        rings[material.name] = ordered.word
    claim.verdict = agreed(words)
    claim.why = "; ".join(f"{n}: {w}" for n, w in words.items()) + (
        ". Supported only if the orthogonal W_r is better than every control; one that is as good falsifies it. Beside: a "
        "ring in phase order against a random ring, " + ", ".join(f"{n}: {w}" for n, w in rings.items())
    )
    return claim
