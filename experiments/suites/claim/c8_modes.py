"""C8: per-layer rotation adapts best and moves most, synchronised rotation the reverse, groups lie between.

A pool stages one expert, so that several pools hold fewer than one. Modes are therefore compared inside one kind of pool:
synchronised and switching with per-layer in the global pool, groups with per-layer in pools of a group.
"""

from rgpu.experiments.suites.claim.arms import STEP, paper
from rgpu.experiments.suites.claim.context import Setting
from rgpu.experiments.suites.claim.inputs import Material
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    MARGIN,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    Versus,
    agreed,
    rate,
    versus,
)

SYNCHRONISED, SWITCHING, ALONE = "synchronised", "switching", "per layer, one pool"


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C8",
        "Modes trade traffic against adaptation: per-layer adapts best and moves most, synchronised the reverse",
        "KR 10-2026-0070380 [0082], fig. 7",
        "hit rate and loads per token of the modes over the same slots and step limit, inside the same kind of pool",
        "the ordering is not seen",
        CANNOT_TELL,
        "",
        figures=["claim_c8"],
    )
    words = {material.name: _on(setting, material, claim) for material in setting.materials}
    claim.verdict = agreed(words)
    claim.why = "; ".join(f"{n}: {w}" for n, w in words.items()) + (
        ". Supported: synchronised has fewer hits and fewer loads than per-layer in the same pool, both beyond the margin, "
        "and what groups lose lies between; not supported: one of the two is the other way round beyond the margin"
    )
    return claim


def modes(material: Material) -> list[Arm]:
    layers = material.scored.layers
    groups = next(n for n in (3, 4, 2) if layers % n == 0 and n < layers)
    scope = f"group{groups}"
    return [
        paper("per layer", step=STEP),
        paper(f"per layer, {groups} pools", scope, step=STEP),
        paper(f"{groups} groups", scope, mode="grouped", step=STEP),
        paper(ALONE, "global", step=STEP),
        paper(SYNCHRONISED, "global", mode="synchronised", step=STEP),
        paper(SWITCHING, "global", mode="switching", step=STEP),
    ]


def _on(setting: Setting, material: Material, claim: Claim) -> str:
    arms = modes(material)
    found = {a.label: setting.bench.counts(material, a, setting.quarter) for a in arms}
    for arm in arms:
        claim.rows += setting.rows(material, "C8", arm, setting.quarter)
    groups = arms[2].label
    pairs = {groups: arms[1].label, SYNCHRONISED: ALONE, SWITCHING: ALONE}
    against = {n: versus(found[n], {other: found[other]}, tests=2)[other] for n, other in pairs.items()}
    claim.numbers[material.name] = {
        "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
        "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
        "minus_per_layer_in_the_same_pools": {n: v.told() for n, v in against.items()},
        "slots": setting.quarter,
        "beside": setting.beside(material, claim, setting.quarter),
    }
    return decide(against[SYNCHRONISED], against[groups])


def decide(synchronised: Versus, groups: Versus) -> str:
    """From both minus per-layer in their own kind of pool."""
    if synchronised.more_hits or synchronised.more_loads:
        return NOT_SUPPORTED
    fewer_hits = synchronised.no_more_hits and synchronised.hits.hi < -MARGIN
    between = all(
        s.estimate <= g.estimate <= 0
        for s, g in ((synchronised.hits, groups.hits), (synchronised.loads, groups.loads))
    )  # fmt: skip
    return SUPPORTED if fewer_hits and synchronised.fewer_loads and between else CANNOT_TELL
