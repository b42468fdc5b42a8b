"""Seconds that one forecast takes: measured on the scored trace, and stretched to a model of another hidden size."""

from dataclasses import dataclass
from typing import Any

from rgpu.experiments.study.predictor_cost import cost_of
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.machine import Machine
from rgpu.traces.trace import Trace

EVENTS = 300


@dataclass(frozen=True, slots=True)
class Work:
    """Of observing and forecasting one event: seconds measured here on one thread (the fastest tenth, for the machine may be
    busy), bytes of state read that grow with the hidden size, and how often the device is waited for beside the router."""

    measured_s: float
    wide_bytes: float = 0.0
    readbacks: int = 0

    def seconds(self, machine: Machine, cost: ModelCost, trace: Trace) -> float:
        """On a machine and beside a model's layers: what was measured, and the rest of a wider map at the rate at which the
        machine's CPU computes experts."""
        own = trace.shape.hidden
        wider = max(0.0, hidden_of(cost) / own - 1) if own and self.wide_bytes else 0.0
        return self.measured_s + self.readbacks * machine.sync_s + wider * self.wide_bytes / machine.cpu_bytes_per_s


def hidden_of(cost: ModelCost) -> float:
    """Hidden size of a model whose experts are three square matrices (as gpt-oss-20b's are); 0 where nothing is said."""
    return float((cost.expert_flop.mean() / 6) ** 0.5)


def work_of(predictor: Any, trace: Trace) -> Work:
    """Of a fitted predictor on the first events of a trace."""
    found = cost_of(predictor, trace, EVENTS)
    needs = getattr(predictor, "needs", ())
    wide = not {"hidden", "pre_attention"}.isdisjoint(needs)
    return Work(1e-6 * found.us_lo, float(found.bytes_read or 0.0) if wide else 0.0, int("pre_attention" in needs))
