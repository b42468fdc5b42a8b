"""Copies into slots: every byte that should move does, and none beside it, by bytes before and after."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.kernels.gather import CASES, MAX_ROWS, Case, gather, gather_ref

GUARD = 2  # rows before and after source and slots, which nothing may read or write


@dataclass
class Call:
    """The arguments of one call. `memory`: the slots and the guard rows around them."""

    source_EB: torch.Tensor
    memory: torch.Tensor
    from_N: torch.Tensor
    to_N: torch.Tensor
    count: torch.Tensor

    def run(self, reference: bool = False) -> torch.Tensor:
        """The memory after the call, on a copy."""
        memory = self.memory.clone()
        slots_SB = memory[GUARD:-GUARD]
        (gather_ref if reference else gather)(self.source_EB, slots_SB, self.from_N, self.to_N, self.count)
        return memory


def call_of(case: Case, seed: int = 0, strays: float = 0.0) -> Call:
    """Random bytes; `strays` of the rows, as a fraction, name a source or a slot that does not exist."""
    make = torch.Generator().manual_seed(seed)
    source = torch.randint(0, 128, (case.experts + 2 * GUARD, case.stride), generator=make).to(torch.uint8)
    memory = torch.randint(128, 256, (case.slots + 2 * GUARD, case.stride), generator=make).to(torch.uint8)
    from_N = torch.randint(0, case.experts, (case.rows,), generator=make).int()
    to_N = torch.randperm(max(case.slots, case.rows), generator=make)[
        : case.rows
    ].int()  # those past the slots do not exist
    gone = torch.rand(case.rows, generator=make) < strays
    for at in gone.nonzero().flatten().tolist():
        (from_N if (at + seed) % 2 else to_N)[at] = (-1, -GUARD, case.experts, case.slots, 2**31 - 1, -(2**31))[at % 6]
    return Call(source[GUARD:-GUARD], memory, from_N, to_N, torch.tensor([case.count], dtype=torch.int32))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case: Case) -> None:
    call = call_of(case)
    after = call.run()
    assert torch.equal(after, call.run(reference=True))
    assert bool(case.count) != torch.equal(after, call.memory)


@given(
    rows=st.integers(0, 12), count=st.integers(-1, 14), experts=st.integers(1, 6), slots=st.integers(1, 12),
    lines=st.sampled_from((1, 2, 3, 127, 128, 129)), strays=st.sampled_from((0.0, 0.5, 1.0)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_any_list(rows: int, count: int, experts: int, slots: int, lines: int, strays: float, seed: int) -> None:
    call = call_of(Case(rows, count, experts, slots, 128 * lines), seed, strays)
    after = call.run()
    assert torch.equal(after, call.run(reference=True))
    assert torch.equal(after[:GUARD], call.memory[:GUARD]) and torch.equal(after[-GUARD:], call.memory[-GUARD:])


def test_spelt_out() -> None:
    """Past the count, -1 as source and slots that do not exist: nothing moves. One expert may go to two slots."""
    source_EB = torch.arange(1, 4, dtype=torch.uint8)[:, None].expand(3, 256).contiguous()
    slots_SB = torch.zeros(4, 256, dtype=torch.uint8)
    rows = [(2, 0), (-1, 1), (0, 4), (0, -1), (3, 1), (2, 3), (1, 2)]
    from_N, to_N = (torch.tensor(column, dtype=torch.int32) for column in zip(*rows, strict=True))
    gather(source_EB, slots_SB, from_N, to_N, torch.tensor([6], dtype=torch.int32))
    assert slots_SB.unique(dim=1).flatten().tolist() == [3, 0, 0, 3]


def test_a_list_without_rows_and_rows_without_bytes() -> None:
    for case in (Case(0, 3, 2, 2, 128), Case(2, 2, 2, 2, 0)):
        call = call_of(case)
        assert torch.equal(call.run(), call.memory)


def good() -> dict[str, torch.Tensor]:
    call = call_of(Case(2, 2, 3, 4, 256))
    return {
        "source_EB": call.source_EB, "slots_SB": call.memory, "from_N": call.from_N, "to_N": call.to_N, "count": call.count
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"source_EB": torch.zeros(3, 256, dtype=torch.int8)},
        {"source_EB": torch.zeros(256, 3, dtype=torch.uint8).T},
        {"source_EB": torch.zeros(3, 384, dtype=torch.uint8)},
        {"slots_SB": torch.zeros(4, 512, dtype=torch.uint8)[:, :256]},
        {"source_EB": torch.zeros(3, 64, dtype=torch.uint8), "slots_SB": torch.zeros(4, 64, dtype=torch.uint8)},
        {"slots_SB": torch.zeros(1025, dtype=torch.uint8)[1:].view(4, 256)},
        {"source_EB": torch.zeros(769, dtype=torch.uint8)[1:].view(3, 256)},
        {"from_N": torch.zeros(2, dtype=torch.int64)},
        {"from_N": torch.zeros(3, dtype=torch.int32)},
        {"to_N": torch.zeros(4, dtype=torch.int32)[::2]},
        {"count": torch.zeros((), dtype=torch.int32)},
        {"count": torch.zeros(1, dtype=torch.int32, device="meta")},
        {name: torch.zeros(MAX_ROWS + 1, dtype=torch.int32) for name in ("from_N", "to_N")},
    ],
    ids=lambda wrong: " ".join(f"{name} {list(t.shape)}" for name, t in wrong.items()),
)
def test_refusals(wrong: dict[str, torch.Tensor]) -> None:
    gather(**good())
    with pytest.raises(InputError, match=r"^gather: got [^\n]*; expected [^\n]*; [^\n]*$"):
        gather(**{**good(), **wrong})


def test_a_device_does_not_read_pageable_memory() -> None:
    """Slots on another device (here one without memory) need a source that is pinned."""
    elsewhere = {name: tensor.to("meta") for name, tensor in good().items() if name != "source_EB"}
    with pytest.raises(InputError, match=r"^gather: got a source on cpu for slots on meta; expected pinned [^\n]*$"):
        gather(source_EB=good()["source_EB"], **elsewhere)
