"""Outputs of pairs that were computed elsewhere take their places between those of a kernel's own waves."""

from typing import Any

import pytest
import torch

from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.kernels.compute_triton import TritonCompute
from rgpu.quant.int8 import Int8
from rgpu.quant.layout import SlotLayout
from rgpu.types import Gate
from tests.experts import filled_slots


@pytest.mark.parametrize("make", [CpuCompute, TritonCompute])
@pytest.mark.parametrize("tokens", [1, 3])
def test_outputs_from_elsewhere(make: Any, tokens: int) -> None:
    layout = SlotLayout(32, 64, Int8(32))
    slots_SB = filled_slots(layout, 4)
    torch.manual_seed(0)
    x_TD, weight_TK = torch.randn(tokens, 64), torch.rand(tokens, 3)
    slot_TK = torch.tensor([[0, 2, 3], [1, 3, 0], [2, 1, 3]], dtype=torch.int32)[:tokens].contiguous()
    wanted_TD = CpuCompute(layout, Gate())(x_TD, slots_SB, slot_TK, weight_TK)
    elsewhere = CpuCompute(layout, Gate())
    other_TK = torch.where(slot_TK == 3, slot_TK, -1)
    elsewhere.wave(x_TD, slots_SB, other_TK, weight_TK)
    pair_N = (other_TK.flatten() >= 0).nonzero()[:, 0]
    compute = make(layout, Gate())
    compute.wave(x_TD, slots_SB, torch.where(slot_TK == 3, -1, slot_TK), weight_TK)
    compute.place(pair_N, elsewhere.outputs()[pair_N])
    out_TD = compute.finish(x_TD, torch.zeros_like(slot_TK), weight_TK)
    if make is CpuCompute:
        assert torch.equal(out_TD, wanted_TD)
    torch.testing.assert_close(out_TD, wanted_TD, rtol=1e-5, atol=1e-5)
