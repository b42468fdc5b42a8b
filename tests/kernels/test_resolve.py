"""Experts to slots: the kernel against plain Python, and the order of missing experts against the traces' own."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.kernels.resolve import CASES, Case, Resolved, resolve, resolve_ref
from tests.kernels.poison import poisoned
from tests.support import routed_trace, unions


def run(expert_TK: torch.Tensor, lookup_E: torch.Tensor, read_experts: bool = True) -> Resolved:
    with poisoned():
        return resolve(expert_TK, lookup_E, read_experts=read_experts)


def same(got: Resolved, want: Resolved) -> bool:
    return all(
        g.dtype == w.dtype == torch.int32 and torch.equal(g, w)
        for g, w in zip(astuple(got), astuple(want), strict=True)
    )


def table(experts: int, absent: float, seed: int) -> torch.Tensor:
    """Slots in no order, `absent` of the experts without one."""
    make = torch.Generator().manual_seed(seed)
    gone = torch.rand(experts, generator=make) < absent
    return torch.where(gone, -1, torch.randperm(experts, generator=make) + 5).int()


def chosen(case: Case, seed: int = 0) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randint(0, case.experts, (case.tokens, case.top_k), generator=make).int()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case: Case) -> None:
    expert_TK, lookup_E = chosen(case), table(case.experts, case.absent, 1)
    assert same(run(expert_TK, lookup_E), resolve_ref(expert_TK, lookup_E))


@given(
    tokens=st.integers(0, 12), top_k=st.integers(1, 12), experts=st.integers(1, 30),
    absent=st.sampled_from((0.0, 0.3, 1.0)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_any_shape(tokens: int, top_k: int, experts: int, absent: float, seed: int) -> None:
    expert_TK, lookup_E = chosen(Case(tokens, top_k, experts), seed), table(experts, absent, seed)
    assert same(run(expert_TK, lookup_E), resolve_ref(expert_TK, lookup_E))


@pytest.mark.parametrize("group", (1, 7))
def test_missing_experts_come_as_events_order_them(group: int) -> None:
    trace = routed_trace(3, tokens=28, layers=1, experts=12, top_k=3, sequences=1, group=group)
    lookup_E = table(12, 0.6, 2)
    for number, union in zip(np.unique(trace.passes), unions(trace, 0), strict=True):
        expert_TK = torch.from_numpy(trace.expert_ids[trace.passes == number, 0].astype(np.int32))
        for slots in (lookup_E, torch.full((12,), -1, dtype=torch.int32)):
            got = run(expert_TK, slots)
            assert got.missing_P[: int(got.count)].tolist() == [e for e in union if slots[e] < 0]


def test_one_expert_again_and_again() -> None:
    got = run(
        torch.tensor([[3, 1], [3, 3], [0, 3]], dtype=torch.int32), torch.tensor([-1, 9, -1, -1], dtype=torch.int32)
    )
    assert got.slot_TK.tolist() == [[-1, 9], [-1, -1], [-1, -1]]
    assert got.missing_P.tolist() == [0, 3, -1, -1, -1, -1] and got.count.tolist() == [2]


def test_experts_outside_the_table_are_neither_read_nor_listed() -> None:
    around = torch.full((30,), 77, dtype=torch.int32)  # what a read past either end would find
    lookup_E = around[10:14]
    lookup_E.copy_(torch.tensor([-1, 2, -5, 3]))
    expert_TK = torch.tensor([[4, -1, 2, 1], [-7, 9, 0, 3], [2**31 - 1, -(2**31), 2, 13]], dtype=torch.int32)
    got = run(expert_TK, lookup_E, read_experts=False)
    assert got.slot_TK.tolist() == [[-1, -1, -1, 2], [-1, -1, -1, 3], [-1, -1, -1, -1]]
    assert got.missing_P.tolist() == [0, 2] + [-1] * 10 and got.count.tolist() == [2]
    assert same(got, resolve_ref(expert_TK, lookup_E))


@pytest.mark.parametrize(
    ("expert_TK", "lookup_E"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)),
        (torch.zeros(6, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)),
        (torch.zeros(3, 2, dtype=torch.int32).T, torch.zeros(4, dtype=torch.int32)),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)[::2]),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(4, dtype=torch.int32, device="meta")),
        (torch.zeros(129, 8, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)),
        (torch.full((2, 3), 4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)),
        (torch.full((2, 3), -1, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)),
    ],
)
def test_refusals(expert_TK: torch.Tensor, lookup_E: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"^resolve: got [^\n]*; expected [^\n]*; [^\n]*$"):
        resolve(expert_TK, lookup_E)
