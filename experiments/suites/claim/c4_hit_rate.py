"""C4: 92.5 % of accesses hit with 80 of 256 experts resident, after calibration. Here: the same share, 10 of 32."""

from collections.abc import Mapping

from rgpu.experiments.suites.claim.arms import STEP, baselines, paper
from rgpu.experiments.suites.claim.context import Setting
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.verdicts import (
    BETTER,
    CANNOT_TELL,
    NO_BETTER,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    rate,
    versus,
)
from rgpu.policies.linear_residency import LinearResidency

SHARE = 80 / 256
REPORTED = 0.925
LIMITS: dict[str, int | None] = {f"{STEP} slots a step": STEP, "no step limit": None}


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C4",
        "92.5 % hit rate with 80 of 256 experts resident after calibrating W_r",
        "KR 10-2026-0070380 [0091]",
        "the same share of experts resident; W_r calibrated, identity and random beside static-hot and the unconstrained "
        "linear control, both with the same step limit",
        "calibrated rotary is not above static-hot or not above the unconstrained linear control",
        CANNOT_TELL,
        "",
        figures=["claim_c4"],
    )
    material = setting.inputs.reference
    slots = round(SHARE * material.scored.header.num_experts)
    own = {n: paper(f"rotary, calibrated W_r, {n}", rotation="calibrated", step=s) for n, s in LIMITS.items()}
    linear = {n: Arm(f"linear_residency, {n}", LinearResidency(step=s)) for n, s in LIMITS.items()}
    turns = [paper(f"rotary, {w} W_r, {STEP} slots a step", rotation=w, step=STEP) for w in ("identity", "random")]
    plain = [arm for arm in baselines() if arm.label != "linear_residency"]
    arms = [*own.values(), *turns, *linear.values(), *plain]
    found = {arm.label: setting.bench.counts(material, arm, slots) for arm in arms}
    for arm in arms:
        claim.rows += setting.rows(material, "C4", arm, slots)
    against = {
        n: versus(
            found[own[n].label],
            {"static_hot": found["static_hot"], "linear_residency": found[linear[n].label]},
            tests=2 * len(LIMITS),
        )
        for n in LIMITS
    }
    hits = {n: rate(found[a.label].hits, found[a.label].accesses) for n, a in own.items()}
    claim.numbers = {
        "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
        "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
        "calibrated_minus": {n: {r: v.told() for r, v in each.items()} for n, each in against.items()},
        "reported": REPORTED,
        "reaches_reported": {n: bool(h[2] >= REPORTED) for n, h in hits.items()},
        "slots": slots,
        "floor": setting.floor(material, slots),
        "differs": "another model (32 experts, top-4, not 256, top-6); whether the record counts a warm tier as a hit is "
                   "not said: here only device slots count",
    }  # fmt: skip
    words = {n: {r: v.word for r, v in each.items()} for n, each in against.items()}
    claim.verdict = decide(words)
    said = "; ".join(f"{n}: " + ", ".join(f"{r} {w}" for r, w in each.items()) for n, each in words.items())
    claim.why = f"calibrated rotary against its controls: {said}"
    return claim


def decide(words: Mapping[str, Mapping[str, str]]) -> str:
    """`words` by step limit and control. Supported: at some limit better than every control; not supported: at every limit
    no better than one of them."""
    if any(all(w == BETTER for w in each.values()) for each in words.values()):
        return SUPPORTED
    return NOT_SUPPORTED if all(NO_BETTER in each.values() for each in words.values()) else CANNOT_TELL
