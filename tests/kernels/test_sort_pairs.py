"""Pairs sorted by slot: the kernel against torch's stable sort, and what the work list promises."""

from dataclasses import astuple, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.kernels.sort_pairs import CASES, Case, SortedPairs, sort_pairs, sort_pairs_ref
from tests.kernels.poison import poisoned


def run(slot_TK: torch.Tensor, slots: int, block: int) -> SortedPairs:
    with poisoned():
        return sort_pairs(slot_TK, slots, block)


def slots_of(case: Case, seed: int = 0) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    used = torch.randperm(case.slots, generator=make)[: case.used]
    slot_TK = used[torch.randint(0, case.used, (case.tokens, case.top_k), generator=make)]
    gone = torch.rand(slot_TK.shape, generator=make) < case.absent
    return torch.where(gone, -1, slot_TK).int()


def same(got: SortedPairs, want: SortedPairs) -> bool:
    return all(
        g.dtype == w.dtype == torch.int32 and torch.equal(g, w)
        for g, w in zip(astuple(got), astuple(want), strict=True)
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case: Case) -> None:
    slot_TK = slots_of(case)
    assert same(run(slot_TK, case.slots, case.block), sort_pairs_ref(slot_TK, case.slots, case.block))


@given(
    tokens=st.integers(0, 40), top_k=st.integers(1, 9), slots=st.integers(1, 40), block=st.integers(1, 20),
    absent=st.sampled_from((0.0, 0.4, 1.0)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_any_shape(tokens: int, top_k: int, slots: int, block: int, absent: float, seed: int) -> None:
    case = Case(tokens, top_k, slots, 1 + seed % slots, block, absent)
    slot_TK = slots_of(case, seed)
    got = run(slot_TK, slots, block)
    assert same(got, sort_pairs_ref(slot_TK, slots, block))
    check_promises(slot_TK.flatten(), got, slots, block)


def check_promises(slot_P: torch.Tensor, got: SortedPairs, slots: int, block: int) -> None:
    """By the words of `SortedPairs`, for kernel and reference alike."""
    pairs = slot_P.numel()
    resident = [p for p in range(pairs) if slot_P[p] >= 0]
    assert got.pair_P[len(resident) :].tolist() == [-1] * (pairs - len(resident))
    covered: list[int] = []
    for slot, first, rows in zip(got.block_slot, got.block_first, got.block_rows, strict=True):
        if slot >= 0:
            assert first == len(covered) and 1 <= rows <= block
            members = got.pair_P[first : first + rows].tolist()
            assert members == sorted(members) and {int(slot_P[p]) for p in members} == {int(slot)}
            covered += members
    assert sorted(covered) == resident
    assert got.block_slot.numel() == pairs // block + min(slots, pairs)


def test_a_slot_that_does_not_exist_is_none() -> None:
    slot_TK = torch.tensor([[5, -9, 2**31 - 1], [0, 4, -(2**31)]], dtype=torch.int32)
    got = run(slot_TK, 5, 2)
    assert got.pair_P.tolist() == [3, 4, -1, -1, -1, -1] and got.block_slot[:3].tolist() == [0, 4, -1]
    assert same(got, sort_pairs_ref(slot_TK, 5, 2))


@pytest.mark.parametrize(("tokens", "slots"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_sort(tokens: int, slots: int) -> None:
    slot_TK = torch.zeros(tokens, 2, dtype=torch.int32)
    got = run(slot_TK, slots, 4)
    assert same(got, sort_pairs_ref(slot_TK, slots, 4)) and got.pair_P.tolist() == [-1] * (2 * tokens)


def test_many_blocks_of_one_slot() -> None:
    slot_TK = torch.full((150, 8), 1, dtype=torch.int32)
    assert same(run(slot_TK, 2, 1), sort_pairs_ref(slot_TK, 2, 1))


def test_many_pairs() -> None:
    slot_TK = slots_of(Case(1024, 8, 3, 3, 64, 0.01))
    assert same(run(slot_TK, 3, 64), sort_pairs_ref(slot_TK, 3, 64))


@pytest.mark.parametrize(
    ("slot_TK", "slots", "block"),
    [
        (torch.zeros(2, 3), 4, 16),
        (torch.zeros(6, dtype=torch.int32), 4, 16),
        (torch.zeros(3, 2, dtype=torch.int32).T, 4, 16),
        (torch.zeros(2, 3, dtype=torch.int32), -1, 16),
        (torch.zeros(2, 3, dtype=torch.int32), 4, 0),
    ],
)
def test_refusals(slot_TK: torch.Tensor, slots: int, block: int) -> None:
    with pytest.raises(InputError, match=r"^sort_pairs: got [^\n]*; expected [^\n]*; [^\n]*$"):
        run(slot_TK, slots, block)


def test_the_comparison_sees_a_difference() -> None:
    slot_TK = slots_of(CASES[1])
    got = run(slot_TK, 64, 16)
    assert not same(got, sort_pairs_ref(slot_TK, 64, 17))
    assert not same(replace(got, pair_P=got.pair_P.flip(0)), sort_pairs_ref(slot_TK, 64, 16))
