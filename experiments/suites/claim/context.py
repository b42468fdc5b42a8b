"""What every claim's test is handed."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rgpu.experiments.suites.claim.arms import controls
from rgpu.experiments.suites.claim.inputs import Inputs, Material
from rgpu.experiments.suites.claim.scoring import Arm, Bench
from rgpu.experiments.suites.claim.verdicts import Claim, rate
from rgpu.policies.policy import Policy
from rgpu.results.derive import kind_of
from rgpu.results.rows import Context


@dataclass(frozen=True, slots=True)
class Setting:
    """`slots`: capacities a layer; `quarter`: the one at which single-capacity claims are tested; `chosen`: by material,
    the rotary configuration picked on its calibration half."""

    inputs: Inputs
    bench: Bench
    slots: tuple[int, ...]
    quarter: int
    chosen: dict[str, Arm]
    provenance: dict[str, object]
    quick: bool

    @property
    def materials(self) -> list[Material]:
        """Those that steady claims are tested on."""
        return [m for m in (self.inputs.reference, self.inputs.routing) if m is not None]

    def floor(self, material: Material, slots: int) -> float:
        """Hit rate without skill: the share of experts that slots hold beside the one that stages (a pool a layer)."""
        return round((slots - 1) / material.scored.header.num_experts, 4)

    def beside(self, material: Material, claim: Claim, slots: int) -> dict[str, Any]:
        """What stands beside every claim: the no-skill line and the controls without a rotation, at `STEP` slots a step.
        Their rows go into the claim's."""
        arms = controls()
        for arm in arms:
            claim.rows += self.rows(material, claim.id, arm, slots)
        found = {arm.label: self.bench.counts(material, arm, slots) for arm in arms}
        return {
            "floor": self.floor(material, slots),
            "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
            "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
        }

    def context(self, material: Material, claim: str) -> Context:
        reads = "hidden states" if material.scored.hidden is not None else "the routing vector"
        return Context(
            experiment=f"claim_{claim.lower()}", model=material.scored.header.model, trace=material.name,
            source=f"{material.source}; rotary reads {reads}", trace_tokens=material.scored.tokens,
            provenance=dict(self.provenance),
        )  # fmt: skip

    def rows(
        self, material: Material, claim: str, arm: Arm, slots: int, case: str | None = None, name: str | None = None
    ) -> list[pa.Table]:
        """Hit rate and loads per token of one arm, with intervals over sequences; shown as `name` (default: its label)."""
        counts = self.bench.counts(material, arm, slots)
        at = at_arm(self.context(material, claim), material, arm, slots).at(case=case, policy=name or arm.label)
        return [
            at.ratio("hit_rate", counts.hits, counts.accesses, keep=False),
            at.ratio("loads_per_token", counts.loads, counts.tokens, unit="loads/token", keep=False),
        ]


def at_arm(context: Context, material: Material, arm: Arm, slots: int) -> Context:
    policy: Policy = arm.policy
    return context.at(
        policy=arm.label, kind=kind_of(policy.traits), scope=arm.scope, slots=slots, reset="sequence",
        capacity_share=slots / material.scored.header.num_experts,
        staging=1 if policy.traits.staging and not policy.traits.bound else 0,
    )  # fmt: skip
