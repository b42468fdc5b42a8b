"""C1: rotary residency follows semantic flow better than LRU. At equal capacity, and at equal moved bytes."""

from dataclasses import replace
from typing import Any

from rgpu.experiments.suites.claim.arms import baselines, described, paper
from rgpu.experiments.suites.claim.context import Setting, at_arm, stacked
from rgpu.experiments.suites.claim.inputs import Material
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
from rgpu.experiments.suites.published.clock import cost_for, machine, speed_rows
from rgpu.experiments.suites.published.record import NotTestableError
from rgpu.policies.admission import Capped, admitted
from rgpu.policies.belady import Belady
from rgpu.policies.lru import Lru
from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.simulate import simulate

RIVALS = ("lru", "lfu", "static_hot")
MACHINES, MISSES = ("rtx4060_laptop", "rtx4090"), ("fetch", "cpu")
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
        ". Supported: more hits than LRU, LFU and static-hot at more than half of the capacities, and some step limit with "
        "more hits than LRU that moves no more than LRU; not supported: every step limit moves more than LRU or hits no more"
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
        hit = {
            r: against(["rotary_paper", r], *stacked([found["rotary_paper"], found[r]], "hits", "accesses"), r)[
                "rotary_paper"
            ]
            for r in RIVALS
        }
        words.append("more" if all(c.verdict == "higher" for c in hit.values()) else "not more")
        by_slots[slots] = {
            "hit_rate": {n: rate(found[n].hits, found[n].accesses) for n in found},
            "loads_per_token": {n: rate(found[n].loads, found[n].tokens) for n in found},
            "rotary_paper_minus": {r: told(hit[r]) for r in RIVALS},
            "floor": round(slots / material.scored.header.num_experts, 4),
            "hits": words[-1],
        }
    dials = _dials(setting, material, claim, chosen)
    enough = 2 * words.count("more") > len(words)
    verdict = CANNOT_TELL
    if enough and any(d["word"] == "more hits, no more loads" for d in dials.values()):
        verdict = SUPPORTED
    elif all(d["word"] in ("more loads", "no more hits") for d in dials.values()):
        verdict = NOT_SUPPORTED
    return verdict, {
        "configuration": described(chosen),
        "capacities": by_slots,
        "simulated_tpot_s": _time(setting, material, claim, arms),
        "step_limits_at_slots": setting.quarter,
        "step_limits": dials,
        "verdict": verdict,
    }


def _dials(setting: Setting, material: Material, claim: Claim, chosen: Arm) -> dict[str, dict[str, Any]]:
    """Rotary with a growing step limit against LRU at one capacity, in hits and in loads; rows also of LRU's own dial."""
    slots, points = setting.quarter, {}
    lru = setting.bench.counts(material, Arm("lru", Lru()), slots)
    for n in (None, 1, 2):
        arm = Arm("lru" if n is None else f"lru, {n} inserts", Lru() if n is None else admitted(Lru(), Capped(n)))
        case = "dial:all inserts" if n is None else f"dial:{n} inserts"
        claim.rows += setting.rows(material, "C1", arm, slots, case=case, name="lru")
    for step in STEPS[1:5] if setting.quick else STEPS:
        arm = Arm(f"rotary_paper, step {step}", replace(chosen.policy, step=step))  # type: ignore[type-var]
        own = setting.bench.counts(material, arm, slots)
        claim.rows += setting.rows(material, "C1", arm, slots, case=f"dial:step {step}", name="rotary_paper")
        hit = against(["own", "lru"], *stacked([own, lru], "hits", "accesses"), "lru")["own"]
        margin = MARGIN * lru.loads_per_token
        load = against(["own", "lru"], *stacked([own, lru], "loads", "tokens"), "lru", margin=margin)["own"]
        word = "open"
        if load.verdict == "higher":
            word = "more loads"
        elif hit.difference.hi < MARGIN:
            word = "no more hits"
        elif hit.verdict == "higher":
            word = "more hits, no more loads"
        points[f"step {step}"] = {
            "hit_rate": round(own.hit_rate, 5), "loads_per_token": round(own.loads_per_token, 5), "word": word,
            "hits_minus_lru": told(hit), "loads_minus_lru": told(load),
        }  # fmt: skip
    return points


def _time(setting: Setting, material: Material, claim: Claim, arms: list[Arm]) -> dict[str, dict[str, list[float]]]:
    """Simulated seconds per output token at one capacity, by machine and miss handler: [estimate, lo, hi] of every arm."""
    trace = material.scored
    found: dict[str, dict[str, list[float]]] = {}
    try:
        cost = cost_for(trace)
    except NotTestableError:  # no cost is known of this model: hits and loads remain
        return found
    facts = pass_facts(trace, cost.window)
    for arm in (*arms, Arm("belady", Belady())):
        log = setting.bench.replay(material, arm, setting.quarter, decisions=True).decisions
        assert log is not None
        at = at_arm(setting.context(material, "C1"), material, arm, setting.quarter)
        for name in MACHINES:
            for miss in MISSES:
                timing = simulate(log, facts, machine(name), cost, trace.header.top_k, miss=miss)
                tables = speed_rows(at.at(case=f"{name}, {miss}"), timing, trace.sequences)
                claim.rows += tables
                row = tables[0].to_pylist()[0]
                found.setdefault(f"{name}, {miss}", {})[arm.label] = [row[c] for c in ("value", "lo", "hi")]
    return found
