"""What a `Gate` does to the two projections of an expert, in plain torch."""

import torch

from rgpu.types import Gate


def apply_gate(gate: Gate, g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """h from the two projections (see `Gate`)."""
    if gate.limit > 0:
        g, u = g.clamp(max=gate.limit), u.clamp(-gate.limit, gate.limit)
    if gate.kind == "gpt_oss":
        return g * torch.sigmoid(gate.alpha * g) * (u + 1)
    if gate.kind == "gelu_tanh":
        return torch.nn.functional.gelu(g, approximate="tanh") * u
    return torch.nn.functional.silu(g) * u
