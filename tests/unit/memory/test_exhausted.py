"""No memory in the middle of a run is one line; other errors stay what they are."""

import pytest
import torch

from rgpu.errors import InputError, RgpuError
from rgpu.memory.exhausted import told_in_a_line


def test_an_allocation_that_fails() -> None:
    line = r"cannot run x: got no memory for it \(.*\); lower y"
    with pytest.raises(InputError, match=line) as raised, told_in_a_line("run x", "lower y"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [MemoryError("m"), torch.OutOfMemoryError("CUDA out of memory. Tried to")])
def test_other_words_for_it(error: Exception) -> None:
    with pytest.raises(InputError, match="got no memory"), told_in_a_line("run", "lower y"):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), RgpuError("out of memory of ours"), ValueError("v")])
def test_what_is_no_shortage(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, told_in_a_line("run", "lower y"):
        raise error
    assert raised.value is error
