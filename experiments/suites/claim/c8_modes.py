"""C8: per-layer rotation adapts best and moves most, synchronised rotation the reverse, groups lie between."""

from rgpu.experiments.suites.claim.arms import STEP, paper
from rgpu.experiments.suites.claim.context import Setting, stacked
from rgpu.experiments.suites.claim.inputs import Material
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    against,
    rate,
    told,
)


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C8",
        "Modes trade traffic against adaptation: per-layer adapts best and moves most, synchronised the reverse",
        "KR 10-2026-0070380 [0082], fig. 7",
        "hit rate and loads per token of the modes over the same slots and step limit",
        "the ordering is not seen",
        CANNOT_TELL,
        "",
        figures=["claim_c8"],
    )
    words = {material.name: _on(setting, material, claim) for material in setting.materials}
    claim.verdict = next(iter(words.values())) if len(set(words.values())) == 1 else CANNOT_TELL
    claim.why = "; ".join(f"{n}: {w}" for n, w in words.items()) + (
        ". Supported: per-layer has more hits and more loads than synchronised, both beyond the margin, and groups lie "
        "between; not supported: one of the two is the other way round beyond the margin"
    )
    return claim


def modes(material: Material) -> list[Arm]:
    layers = material.scored.layers
    groups = next(n for n in (3, 4, 2) if layers % n == 0 and n < layers)
    return [
        paper("per layer", step=STEP),
        paper(f"{groups} groups", f"group{groups}", mode="grouped", step=STEP),
        paper("synchronised", "global", mode="synchronised", step=STEP),
        paper("switching", "global", mode="switching", step=STEP),
    ]


def _on(setting: Setting, material: Material, claim: Claim) -> str:
    arms = modes(material)
    found = {a.label: setting.bench.counts(material, a, setting.quarter) for a in arms}
    for arm in arms:
        claim.rows += setting.rows(material, "C8", arm, setting.quarter)
    names, counts = list(found), list(found.values())
    hits = against(names, *stacked(counts, "hits", "accesses"), "per layer")
    margin = 0.005 * counts[0].loads_per_token
    loads = against(names, *stacked(counts, "loads", "tokens"), "per layer", margin=margin)
    claim.numbers[material.name] = {
        "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
        "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
        "hits_minus_per_layer": {n: told(c) for n, c in hits.items()},
        "loads_minus_per_layer": {n: told(c) for n, c in loads.items()},
        "slots": setting.quarter,
    }
    between = all(
        min(counts[0].__getattribute__(q), counts[2].__getattribute__(q)) <= counts[1].__getattribute__(q)
        <= max(counts[0].__getattribute__(q), counts[2].__getattribute__(q))
        for q in ("hit_rate", "loads_per_token")
    )  # fmt: skip
    both = (hits["synchronised"].verdict, loads["synchronised"].verdict)
    if both == ("lower", "lower") and between:
        return SUPPORTED
    return NOT_SUPPORTED if "higher" in both else CANNOT_TELL
