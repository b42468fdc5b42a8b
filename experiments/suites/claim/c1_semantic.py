"""C1: rotary residency follows semantic flow better than LRU. At equal capacity, and at equal moved bytes."""

from dataclasses import replace
from typing import Any

from rgpu.experiments.suites.claim.arms import baselines, described, paper
from rgpu.experiments.suites.claim.context import Setting, stacked
from rgpu.experiments.suites.claim.inputs import Material
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.verdicts import (
    CANNOT_TELL,
    Claim,
    against,
    median_split,
    rate,
    told,
)
from rgpu.policies.admission import Capped, admitted
from rgpu.policies.belady import Belady
from rgpu.policies.lru import Lru
from rgpu.policies.rotary_paper import RotaryPaper

RIVALS = ("lru", "lfu", "static_hot")
STEPS = (0.25, 0.5, 1, 2, 4, None)


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C1",
        "Rotary residency follows semantic flow better than LRU",
        "KR 10-2026-0070380 [0043]",
        "hit rate and loads per token at every capacity, cold per sequence, the configuration chosen on the calibration "
        "half; and hit rate against loads per token over the step limit at one capacity",
        "rotary is not above LRU, LFU and static-hot at equal bytes",
        CANNOT_TELL,
        "",
    )
    words = {}
    for material in setting.materials:
        words[material.name], claim.numbers[material.name] = _on(setting, material, claim)
    verdicts = set(words.values())
    claim.verdict = verdicts.pop() if len(verdicts) == 1 else CANNOT_TELL
    claim.why = "; ".join(f"{name}: {word}" for name, word in words.items()) + (
        ". At a capacity rotary is above if its hits are higher than those of LRU, LFU and static-hot and its loads not "
        "higher than LRU's, below if its hits are lower than the best of them or it moves more bytes than LRU for no more "
        "hits; more than half of the capacities decide"
    )
    claim.figures = ["claim_c1"]
    return claim


def _on(setting: Setting, material: Material, claim: Claim) -> tuple[str, dict[str, Any]]:
    chosen = setting.chosen[material.name]
    arms = [*baselines(), paper("rotary", step=2), chosen]
    if chosen.policy == RotaryPaper():
        arms.remove(next(a for a in arms if a.label == "rotary"))
    words, by_slots = [], {}
    for slots in setting.slots:
        for arm in (*arms, Arm("belady", Belady())):
            claim.rows += setting.rows(material, "C1", arm, slots, case="capacity")
        found = {a.label: setting.bench.counts(material, a, slots) for a in arms}
        hits = {r: against(["rotary_paper", r], *stacked([found["rotary_paper"], found[r]], "hits", "accesses"), r)
                for r in RIVALS}  # fmt: skip
        hit = {r: c["rotary_paper"] for r, c in hits.items()}
        mean = found["lru"].loads_per_token
        load = against(
            ["rotary_paper", "lru"], *stacked([found["rotary_paper"], found["lru"]], "loads", "tokens"), "lru",
            margin=0.005 * mean,
        )["rotary_paper"]  # fmt: skip
        above = all(c.verdict == "higher" for c in hit.values()) and load.verdict != "higher"
        below = any(c.verdict == "lower" for c in hit.values()) or (
            load.verdict == "higher" and hit["lru"].verdict != "higher"
        )
        words.append("above" if above else "below" if below else "open")
        by_slots[slots] = {
            "hit_rate": {n: rate(found[n].hits, found[n].accesses) for n in found},
            "loads_per_token": {n: rate(found[n].loads, found[n].tokens) for n in found},
            "rotary_paper_minus": {r: told(hit[r]) for r in RIVALS},
            "loads_minus_lru": told(load),
            "floor": round(slots / material.scored.header.num_experts, 4),
            "word": words[-1],
        }
    pareto = _pareto(setting, material, claim, chosen)
    return median_split(words, "above", "below"), {
        "configuration": described(chosen),
        "capacities": by_slots,
        "pareto_at_slots": setting.quarter,
        "pareto": pareto,
        "verdict": median_split(words, "above", "below"),
    }


def _pareto(setting: Setting, material: Material, claim: Claim, chosen: Arm) -> dict[str, list[float]]:
    """Hit rate and loads per token as the step limit grows; LRU with capped inserts is the same dial for LRU."""
    slots, points = setting.quarter, {}
    steps = STEPS[1:5] if setting.quick else STEPS
    dials = [Arm(f"rotary_paper, step {s}", replace(chosen.policy, step=s)) for s in steps]  # type: ignore[type-var]
    dials += [Arm(f"lru, {n} inserts", admitted(Lru(), Capped(n))) for n in (1, 2)] + [Arm("lru", Lru())]
    for arm in dials:
        counts = setting.bench.counts(material, arm, slots)
        family, _, dial = arm.label.partition(", ")
        claim.rows += setting.rows(material, "C1", arm, slots, case=f"dial:{dial or 'all inserts'}", name=family)
        points[arm.label] = [round(counts.hit_rate, 5), round(counts.loads_per_token, 5)]
    return points
