"""C9: rotation itself matters. The orthogonal constraint against everything that does without it, at one step limit."""

from rgpu.experiments.suites.claim.arms import STEP, paper
from rgpu.experiments.suites.claim.context import Setting, stacked
from rgpu.experiments.suites.claim.scoring import Arm
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
from rgpu.policies.linear_residency import LinearResidency
from rgpu.policies.ring import Ring
from rgpu.policies.router_lag import RouterLag

WITHOUT = ("identity W_r", "linear W_r", "linear_residency", "router_lag")


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C9",
        "Rotation itself matters",
        "KR 10-2026-0070380 [0063]",
        f"hit rate at {STEP} slots a step: a calibrated orthogonal W_r against the identity, an unconstrained W_r, an "
        "unconstrained linear forecast and the router's last logits; and the ring in phase order against a random ring",
        "no gap",
        CANNOT_TELL,
        "",
        figures=["claim_c9"],
    )
    words = {}
    for material in setting.materials:
        turns = ("calibrated", "identity", "random", "linear")
        arms = [paper(f"{w} W_r", rotation=w, step=STEP) for w in turns]
        arms += [
            Arm("linear_residency", LinearResidency(step=STEP)),
            Arm("router_lag", RouterLag(step=STEP)),
            paper("phase, ring by phase", transforms="phase", step=STEP),
            paper("phase, random ring", transforms="phase", ring_order="random", step=STEP),
            Arm("ring", Ring(step=STEP)),
        ]
        found = {a.label: setting.bench.counts(material, a, setting.quarter) for a in arms}
        for arm in arms:
            claim.rows += setting.rows(material, "C9", arm, setting.quarter)
        own = "calibrated W_r"
        versus = {n: against([own, n], *stacked([found[own], found[n]], "hits", "accesses"), n)[own] for n in WITHOUT}
        rings = ["phase, ring by phase", "phase, random ring"]
        ordered = against(rings, *stacked([found[r] for r in rings], "hits", "accesses"), rings[1])[rings[0]]
        claim.numbers[material.name] = {
            "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
            "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
            "calibrated_minus": {n: told(c) for n, c in versus.items()},
            "ring_by_phase_minus_random_ring": told(ordered),
            "slots": setting.quarter,
            "floor": round(setting.quarter / material.scored.header.num_experts, 4),
        }
        if all(c.verdict == "higher" for c in versus.values()):
            words[material.name] = SUPPORTED
        elif any(c.verdict == "lower" or c.difference.hi < MARGIN for c in versus.values()):
            words[material.name] = NOT_SUPPORTED
        else:
            words[material.name] = CANNOT_TELL
    claim.verdict = next(iter(words.values())) if len(set(words.values())) == 1 else CANNOT_TELL
    claim.why = "; ".join(f"{n}: {w}" for n, w in words.items()) + (
        ". Supported only if the orthogonal W_r is above every control; a control that is as good falsifies it"
    )
    return claim
