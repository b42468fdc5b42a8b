"""Bookkeeping of forward passes, with a stub in place of a model and with `generate`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import InputError
from rgpu.traces.passes import PassInfo, PassTracker


class Cache:
    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


class Stub(torch.nn.Module):
    """Accepts what a causal model accepts and keeps what the tracker said during the call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[PassInfo | None] = []
        self.tracker: PassTracker | None = None

    def forward(self, input_ids: Any = None, attention_mask: Any = None, past_key_values: Any = None, **_: Any) -> None:
        self.seen.append(self.tracker.current if self.tracker else None)


def tracked(eos: tuple[int, ...] = (1,)) -> tuple[Stub, PassTracker]:
    model = Stub()
    model.tracker = PassTracker(model, eos).attach()
    return model, model.tracker


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_prompt_then_decode_with_left_padding(name: str) -> None:
    model, tracker = tracked()
    mask = ids([1, 1, 1], [0, 0, 1])
    model(input_ids=ids([5, 6, 7], [1, 1, 8]), attention_mask=mask)
    both = {"input_ids": ids([9], [3]), "attention_mask": torch.nn.functional.pad(mask, (0, 1), value=1)}
    model(**both, **{name: Cache(3)})
    prompt, step = model.seen
    assert prompt is not None and step is not None and tracker.current is None and tracker.last is step
    assert prompt.sequence_T.tolist() == [0, 0, 0, 1, 1, 1] and prompt.token_T.tolist() == [5, 6, 7, 1, 1, 8]
    assert prompt.phase_T.tolist() == [0, 0, 0, 2, 2, 0] and prompt.position_T.tolist() == [0, 1, 2, 0, 0, 0]
    assert (
        step.phase_T.tolist() == [1, 1]
        and step.position_T.tolist() == [3, 1]
        and (step.pass_id, step.fresh) == (1, False)
    )
    kinds = [a.dtype for a in (step.sequence_T, step.position_T, step.phase_T, step.token_T)]
    assert kinds == [np.int64, np.int32, np.uint8, np.int32]


def test_rows_after_their_end_are_padding() -> None:
    model, _ = tracked()
    model(input_ids=ids([1, 5], [1, 6]))  # the end token inside a prompt ends nothing
    for step, row in enumerate(([7, 1], [8, 1], [9, 4])):
        model(input_ids=ids(*[[t] for t in row]), past_key_values=Cache(2 + step))
    phases = [info.phase_T.tolist() for info in model.seen if info is not None]
    assert phases == [[0, 0, 0, 0], [1, 2], [1, 2], [1, 2]]
    model(input_ids=ids([7], [8]))  # an empty cache begins new sequences
    assert model.seen[-1] is not None and model.seen[-1].sequence_T.tolist() == [2, 3]
    assert model.seen[-1].phase_T.tolist() == [0, 0]


def test_one_row_never_ends() -> None:
    model, _ = tracked()
    model(input_ids=ids([5]))
    model(input_ids=ids([1]), past_key_values=Cache(1))
    assert model.seen[-1] is not None and model.seen[-1].phase_T.tolist() == [1]


def test_right_padding_and_second_prompt_part() -> None:
    model, _ = tracked()
    model(ids([5, 6, 7], [8, 1, 1]), ids([1, 1, 1], [1, 0, 0]))
    assert model.seen[-1] is not None and model.seen[-1].phase_T.tolist() == [0, 0, 0, 0, 2, 2]
    model(input_ids=ids([5, 6], [7, 8]), past_key_values=Cache(3))
    assert model.seen[-1].phase_T.tolist() == [0, 0, 0, 0]  # several tokens on a filled cache: more prompt
    assert model.seen[-1].position_T.tolist() == [3, 4, 1, 2]


def test_detach_and_errors() -> None:
    model, tracker = tracked()
    with pytest.raises(InputError, match="attached"):
        tracker.attach()
    with pytest.raises(InputError, match="neither input_ids nor inputs_embeds"):
        model(past_key_values=None)
    tracker.detach()
    model(input_ids=ids([5]))
    assert model.seen == [None] and not model._forward_hooks and not model._forward_pre_hooks
    with tracker:
        model(inputs_embeds=torch.zeros(1, 2, 4))
    assert model.seen[-1] is not None and model.seen[-1].token_T.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("Qwen3Moe", {}), ("GptOss", {}), ("Mixtral", {"sliding_window": 4}), ("Mixtral", {"sliding_window": 6})],
)
def test_static_cache_reads_the_same_as_dynamic(
    make_model: Callable[..., Any], kind: str, changes: dict[str, Any]
) -> None:
    """Also where every layer has a window, which the text outgrows."""
    model = make_model(kind, **changes)
    tokens, mask = torch.randint(2, 97, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    mask[1, :3] = 0
    seen: list[list[PassInfo]] = []
    for options in ({}, {"cache_implementation": "static", "disable_compile": True}):
        with PassTracker(model) as tracker:
            infos: list[PassInfo] = []
            hook = model.register_forward_hook(lambda *_, t=tracker, i=infos: i.append(t.last))
            model.generate(tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, **options)
            hook.remove()
        seen.append(infos)
    assert len(seen[0]) == 4
    for a, b in zip(*seen, strict=True):
        assert a.phase_T.tolist() == b.phase_T.tolist() and a.position_T.tolist() == b.position_T.tolist()
        assert a.token_T.tolist() == b.token_T.tolist()
