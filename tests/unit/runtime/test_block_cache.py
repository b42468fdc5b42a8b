"""A static cache that grows by blocks: what it gives is what one of full size gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import StaticCache

from rgpu.experiments.live_peaks import Peaks
from rgpu.experiments.live_room import Later, cache_of
from rgpu.memory.process import PeakMemory
from rgpu.planning.memory_plan import SlotRoom, plan_memory
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime import block_cache as block_cache_module
from rgpu.runtime import generation
from rgpu.runtime.block_cache import block_cache, cache_name, grow, room
from rgpu.runtime.model_bytes import read_facts
from rgpu.runtime.session import OffloadSession
from tests.live_models import build, prompts


def generate(model: Any, cache: Any, new: int = 30) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    out = model.generate(
        **prompts(2), max_new_tokens=new, min_new_tokens=new, do_sample=False, output_logits=True,
        return_dict_in_generate=True, disable_compile=True, **{cache_name(model): cache},
    )  # fmt: skip
    return out.sequences, out.logits


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_what_a_cache_of_full_size_gives(kind: str, tmp_path: Path) -> None:
    folder = build(kind, tmp_path / kind)
    with OffloadSession.open(
        folder, lambda shape: Controller(Lru(), shape, PoolConfig("layer", 4)), cache=tmp_path, record=False
    ) as session:
        model = session.model
        wanted = generate(model, StaticCache(config=model.config, max_cache_len=40))
        cache = block_cache(model, 12, 40)
        grown = []

        def after(held: int) -> None:
            before = room(cache)
            if held + 1 > before:
                grow(cache, before + 12)
                grown.append(room(cache))

        session.after_passes(after)
        got = generate(model, cache)
    assert torch.equal(got[0], wanted[0])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(got[1], wanted[1], strict=True))
    assert grown == [24, 36, 48]
    whole = [layer for layer in cache.layers if layer.is_sliding]
    assert len(whole) == (2 if kind == "gpt_oss" else 0)
    grow(cache, 5)
    assert room(cache) == 48
    assert [layer.keys.shape[2] for layer in cache.layers if not layer.is_sliding] == [48] * (3 - len(whole))


def test_slots_go_a_block_ahead_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `rgpu generate memory.grow=true` does with graphs on a GPU."""
    monkeypatch.setattr("rgpu.experiments.live_room.BLOCK", 16)
    folder = build("qwen3_moe", tmp_path / "m", head_dim=128)
    facts, how = read_facts(str(folder), "float32"), {"batch": 2, "prefill_rows": 18}
    slots = SlotRoom(facts, gpu=False, **how)  # type: ignore[arg-type]
    cap = slots.smallest(39) + 2 * 3 * facts.expert_stride
    full = plan_memory(facts, vram=None, ram=cap, context=39, **how)  # type: ignore[arg-type]
    later = Later(slots, full, 9, True, [])
    first = plan_memory(facts, vram=None, ram=cap, context=later.block_of(9), **how)  # type: ignore[arg-type]
    later.begins_with(first)
    assert (first.context, first.slots > full.slots) == (16, True)
    with OffloadSession.open(
        folder, lambda shape: Controller(Lru(), shape, PoolConfig("layer", first.slots)), cache=tmp_path, record=False
    ) as session:
        assert cache_of(session, None) is None
        later.watch(session, Peaks(PeakMemory()), blocks=True)
        cache = cache_of(session, later)
        made = generation.run_greedy(
            session.model, prompts(2), 30, 0, min_new_tokens=30, **{cache_name(session.model): cache}
        )
        alone = generation.run_greedy(session.model, prompts(2), 30, 0, min_new_tokens=30)
    assert torch.equal(made[0], alone[0])
    assert room(cache) == 39
    section = later.section()
    assert section["context_at_start"] == 16 and section["slots_at_end"] >= section["slots_at_full_context"]
    numbers = [change["pass"] for change in section["changes"] if change["pass"] < 30]
    assert numbers and set(numbers) <= {8, 24}  # the passes that make it longer than 16 and 32


def test_a_plan_that_was_wrong_costs_slots_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A card that has less than it should: the second layer finds no memory, twice."""
    folder = build("qwen3_moe", tmp_path / "m")
    facts = read_facts(str(folder), "float32")
    plan = plan_memory(facts, vram=None, ram=1 << 30, context=40)
    later = Later(SlotRoom(facts, gpu=False), plan, 9, True, [])
    later.begins_with(plan_memory(facts, vram=None, ram=1 << 30, context=12))
    left, longer = [2], block_cache_module._longer

    def scarce(old: torch.Tensor, tokens: int) -> torch.Tensor:
        if cache.layers[0].max_cache_len == tokens and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return longer(old, tokens)

    monkeypatch.setattr(block_cache_module, "_longer", scarce)
    monkeypatch.setattr("rgpu.experiments.live_room.BLOCK", 12)
    with OffloadSession.open(
        folder, lambda shape: Controller(Lru(), shape, PoolConfig("layer", 10)), cache=tmp_path, record=False
    ) as session:
        later.watch(session, Peaks(PeakMemory()), blocks=True)
        cache = cache_of(session, later)
        made = generate(session.model, cache)
        assert session.sizes.rows() == [8, 8, 8]
        wanted = generate(session.model, StaticCache(config=session.model.config, max_cache_len=40))
        assert torch.equal(made[0], wanted[0])
        left[0] = 1000
        fresh = block_cache(session.model, 12, 40)
        later.cache = cache = fresh
        with pytest.raises(torch.OutOfMemoryError):
            generate(session.model, fresh)
        assert session.sizes.rows() == [1, 1, 1]
    assert later.section()["short_of_memory"] == 2 + 9  # the second text began with all ten again
    assert "got no memory for a cache of 24 tokens; 3 slots more are given back" in capsys.readouterr().err
