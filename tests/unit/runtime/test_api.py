"""`session.model` as transformers users call it: caches, beams, padding, long prompts, several sessions, interruptions. In
float32 on a CPU everything is bit for bit what the stock model gives."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.loading import load_resident
from rgpu.runtime.session import OffloadSession
from rgpu.runtime.telemetry import Telemetry
from rgpu.traces.moe_layers import moe_layers
from tests.live_models import EXPERTS, TOP_K, Case, generate, prompts


@pytest.fixture(scope="module")
def stock(cases: dict[str, Case]) -> Any:
    folder = cases["qwen3_moe"].folder
    return load_resident(folder, read_architecture(folder), torch.float32)


def opened(case: Case, cache: Path, slots: int = 4, **options: Any) -> OffloadSession:
    return OffloadSession.open(
        case.folder, lambda shape: Controller(Lru(), shape, PoolConfig("layer", slots)), cache=cache, **options
    )


def made(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    wanted = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "output_scores": True} | options
    out = model.generate(**inputs, **wanted, return_dict_in_generate=True)
    return out.sequences, (*out.logits, *out.scores)


def same(ours: Any, theirs: Any) -> bool:
    return torch.equal(ours[0], theirs[0]) and all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))


WAYS: dict[str, dict[str, Any]] = {
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampled beams": {"num_beams": 2, "do_sample": True, "temperature": 0.7},
    "sampling": {"do_sample": True, "top_p": 0.9},
    "no cache": {"use_cache": False},
    "repetition penalty": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("way", WAYS)
def test_ways_to_generate(cases: dict[str, Case], cache: Path, stock: Any, way: str, batch: int) -> None:
    """A batch of 4 has left padding of 0, 2, 4 and 6 tokens."""
    inputs = prompts(batch)
    assert int(inputs["attention_mask"][-1].sum()) == 9 - 2 * (batch - 1)
    torch.manual_seed(7)
    theirs = made(stock, inputs, **WAYS[way])
    with opened(cases["qwen3_moe"], cache) as session:
        torch.manual_seed(7)
        ours = made(session.model, inputs, **WAYS[way])
        assert 0 < session.controller.hits < session.controller.accesses
    assert same(ours, theirs)


def test_a_prompt_that_needs_more_experts_than_there_are_slots(cases: dict[str, Case], cache: Path, stock: Any) -> None:
    torch.manual_seed(3)
    ids = torch.randint(2, 96, (1, 70))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    slots = TOP_K - 1  # not even one token's experts at a time
    with opened(cases["qwen3_moe"], cache, slots) as session:
        ours = made(session.model, inputs)
        first = session.log[0]
    assert len(first[3]) == EXPERTS and min(first[4]) >= -1
    loads = [code for code in first[4] if code >= 0]
    assert len(loads) == EXPERTS > 4 * slots and set(loads) == set(range(slots))  # each slot again and again: waves
    assert same(ours, made(stock, inputs))


def test_a_plain_forward_with_labels(cases: dict[str, Case], cache: Path, stock: Any) -> None:
    ids = prompts(1)["input_ids"]
    with opened(cases["qwen3_moe"], cache) as session:
        ours = session.model(input_ids=ids, labels=ids)
    theirs = stock(input_ids=ids, labels=ids)
    assert torch.equal(ours.loss, theirs.loss) and torch.equal(ours.logits, theirs.logits)


def test_two_sessions_at_a_time(cases: dict[str, Case], cache: Path) -> None:
    """Two models, and one model twice with pools of their own; one that closes takes nothing from the others."""
    qwen, olmoe = cases["qwen3_moe"], cases["olmoe"]
    with opened(qwen, cache, 3) as first:
        with opened(olmoe, cache, 2) as second, opened(qwen, cache, EXPERTS) as third:
            sessions = ((first, qwen), (second, olmoe), (third, qwen), (first, qwen))
            for session, case in sessions:
                inputs, tokens, logits = case.stock[1]
                assert same(generate(session.model, inputs), (tokens, logits))
            closed = second.model
        with pytest.raises(InputError, match="closed offload session; open one"):
            generate(closed, olmoe.stock[1][0])
        inputs, tokens, logits = qwen.stock[4]
        assert same(generate(first.model, inputs), (tokens, logits))


def copying() -> int:
    return sum(thread.name.startswith("rgpu-transfer") for thread in threading.enumerate())


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def interrupting(model: Any, at: int) -> Any:
    """Ctrl-C in the middle of the pass: before expert layer 1 runs for the time `at`."""
    calls = iter(range(1000))

    def stop(*_: Any) -> None:
        if next(calls) == at:
            raise KeyboardInterrupt

    return moe_layers(model)[1].experts.register_forward_pre_hook(stop)


@pytest.mark.parametrize("at", [0, 3])
def test_an_interrupt_inside_a_forward_leaves_nothing_behind(cases: dict[str, Case], cache: Path, at: int) -> None:
    import transformers.models.qwen3_moe.modeling_qwen3_moe as module
    from transformers.monkey_patching import get_patch_mapping

    original, before, case = module.Qwen3MoeExperts, copying(), cases["qwen3_moe"]
    with (
        pytest.raises(KeyboardInterrupt),
        opened(case, cache, hidden=True, telemetry=Telemetry(slices=True)) as session,
    ):
        assert copying() == before + 1
        interrupting(session.model, at)
        generate(session.model, case.stock[1][0])
    assert copying() == before
    assert module.Qwen3MoeExperts is original and not get_patch_mapping()
    assert hooks(session.model) == 1  # the test's own
    assert all(layer.experts.run is None for layer in moe_layers(session.model))
    with pytest.raises(InputError, match="does not record|closed|no trace"):
        session.trace()


def test_a_session_goes_on_after_an_interrupt(cases: dict[str, Case], cache: Path) -> None:
    case = cases["qwen3_moe"]
    with opened(case, cache, 3, record=False) as session:
        for at in (0, 2):
            hook = interrupting(session.model, at)
            with pytest.raises(KeyboardInterrupt):
                generate(session.model, case.stock[4][0])
            hook.remove()
            inputs, tokens, logits = case.stock[4]
            assert same(generate(session.model, inputs), (tokens, logits))


def test_an_interrupt_while_a_session_opens(cases: dict[str, Case], cache: Path) -> None:
    before = copying()

    def controller(_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OffloadSession.open(cases["qwen3_moe"].folder, controller, cache=cache)
    assert copying() == before
