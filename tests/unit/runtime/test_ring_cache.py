"""Sliding windows as rings: what transformers' own layers give, bit for bit, and steps that replay right where those cannot be
captured."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.generation.continuous_batching  # noqa: F401  (reads torch.cuda's classes when it is imported)
from transformers import GptOssConfig, StaticCache

from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.ring_cache import RingLayer, captured, replayed, ring_layers, with_rings
from rgpu.runtime.step_graphs import StepGraphs
from tests import graphs_on_cpu
from tests.live_models import build, prompts
from tests.unit.runtime.test_device_executor import Late, opened

WINDOW, LONGEST = 5, 40
PASSES = {
    "token by token": [1] * 14,
    "prompt shorter than the window": [3, *[1] * 9],
    "prompt as long as the window": [5, *[1] * 7],
    "prompt longer than the window": [13, *[1] * 7],
    "waves": [3, 2, 7, 1, 1, 4, 1, 2, 6, 1],
    "waves across the window": [4, 3, 1, 11, 1, 1],
}


def cache_of(window: int = WINDOW, longest: int = LONGEST) -> StaticCache:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    return StaticCache(
        config=GptOssConfig(num_hidden_layers=3, layer_types=types, sliding_window=window), max_cache_len=longest
    )


def random_pass(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, tokens, 4), torch.randn(2, 3, tokens, 6)


def equal(ours: Any, theirs: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("converted", [0, 2, 4, 8])
@pytest.mark.parametrize("longest", [LONGEST, 5])
@pytest.mark.parametrize("name", PASSES)
def test_what_attention_gets_is_that_of_the_stock_layer(name: str, longest: int, converted: int) -> None:
    """Also where a cache is taken over after some passes."""
    torch.manual_seed(0)
    stock, rings = cache_of(longest=longest), cache_of(longest=longest)
    fitting = [tokens for at, tokens in enumerate(PASSES[name]) if sum(PASSES[name][: at + 1]) <= longest] or [longest]
    for number, tokens in enumerate(fitting):
        if number == min(converted, len(fitting) - 1):
            with_rings(rings)
        assert stock.get_seq_length(0) == rings.get_seq_length(0) == sum(fitting[:number])
        for layer in range(3):
            assert stock.get_mask_sizes(tokens, layer) == rings.get_mask_sizes(tokens, layer)
        for layer in range(3):
            given = random_pass(tokens)
            assert equal(rings.update(*given, layer), stock.update(*given, layer))
    places = [layer.keys.data_ptr() for layer in ring_layers(rings)]
    with_rings(rings)
    assert [layer.keys.data_ptr() for layer in ring_layers(rings)] == places


def test_a_recorded_pass_moves_nothing_on_the_host() -> None:
    rings = cache_of()
    with_rings(rings)
    for layer in range(3):
        rings.update(*random_pass(7), layer)
    with captured(rings):
        assert isinstance(rings.get_seq_length(0), torch.Tensor) and int(rings.get_seq_length(0)) == 7
        assert [int(n) for n in rings.get_mask_sizes(1, 0)] == [5, 3]
        rings.update(*random_pass(1), 0)
        assert int(rings.get_seq_length(0)) == 8 and int(rings.get_seq_length(2)) == 7
        rings.update(*random_pass(1), 2)
    assert rings.get_seq_length(0) == rings.get_seq_length(2) == 7
    assert vars(rings.layers[0].place)["_slot"] is None  # nothing of a graph's memory is kept
    replayed(rings)
    assert rings.get_seq_length(0) == 8 and rings.get_mask_sizes(1, 2) == (5, 4)
    rings.update(*random_pass(1), 0)
    rings.update(*random_pass(1), 0)
    with pytest.raises(
        RuntimeError, match="got a cache of which a layer has 8 tokens where others have 10; .* new cache"
    ):
        rings.update(*random_pass(1), 2)


def test_a_ring_forgets_but_does_not_go_back() -> None:
    rings, stock = cache_of(), cache_of()
    with_rings(rings)
    for layer in range(3):
        rings.update(*random_pass(9), layer)
    with pytest.raises(RuntimeError, match=r"got crop\(-1\) on a sliding window; .* DynamicCache"):
        rings.layers[0].crop(-1)
    rings.reset()
    assert rings.get_seq_length(0) == 0
    for tokens in (2, 1, 1, 1, 1, 4):
        for layer in range(3):
            given = random_pass(tokens)
            assert equal(rings.update(*given, layer), stock.update(*given, layer))
    order = torch.tensor([1, 0])
    rings.reorder_cache(order)
    stock.reorder_cache(order)
    for layer in range(3):
        given = random_pass(1)
        assert equal(rings.update(*given, layer), stock.update(*given, layer))


@contextmanager
def engine(folder: Path, stores: Path, slots: int) -> Iterator[tuple[Any, Any, ExitStack]]:
    """(model, executor on a late device, stack) whose computing a graph can keep."""
    pool = PoolConfig("layer", slots)
    with opened(folder, stores, Lru(), pool) as session, ExitStack() as stack:
        late = Late(session, lambda shape: Controller(Lru(), shape, pool), "fetch", 0)
        make, late.executor._kernels = late.executor._make_kernel, {}
        late.executor._make_kernel = lambda: graphs_on_cpu.Kernel(make())
        yield session.model, late.executor, stack


def text(model: Any, tokens: int, batch: int = 4, **options: Any) -> Any:
    return model.generate(
        **prompts(batch), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0,
        disable_compile=True, output_logits=True, return_dict_in_generate=True, cache_implementation="static", **options,
    )  # fmt: skip


KINDS: list[tuple[str, dict[str, Any], int, list[bool]]] = [  # prompts have nine tokens, some of them padding
    ("gpt_oss", {"sliding_window": 4}, 4, [True, False, True]),
    ("gpt_oss", {"sliding_window": 12}, 10, [True, False, True]),
    ("gpt_oss", {"sliding_window": 64}, 4, [True, False, True]),
    ("gpt_oss", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, 2, [False, True, False]),
    ("mixtral", {"sliding_window": 8}, 4, [True] * 3),
    ("mimo_v2_flash", {"n_routed_experts": 10, "sliding_window": 8}, 4, [False, True, True]),
    ("qwen2_moe", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, 4, [True, False, False]),
]


@pytest.mark.parametrize(("kind", "changed", "slots", "sliding"), KINDS)
def test_steps_of_sliding_windows_replay_as_they_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, changed: dict[str, Any], slots: int, sliding: list[bool]
) -> None:
    """Tokens and logits of graphs, of rings without, and of transformers' own cache are one another's, bit for bit."""
    graphs_on_cpu.on_cpu(monkeypatch)
    width = {name: 32 for name in ("intermediate_size", "moe_intermediate_size")}
    folder = build(kind, tmp_path / "m", hidden_size=64, **width, **changed)
    with engine(folder, tmp_path / "stores", slots) as (model, executor, stack):
        stock, beams = text(model, 20), text(model, 8, num_beams=2).sequences
        made = StepGraphs(model, executor, stack)
        for _ in range(2):
            ours = text(model, 20)
            assert torch.equal(stock.sequences, ours.sequences) and equal(ours.logits, stock.logits)
        kept = getattr(ours, "past_key_values", None) or ours.cache
        assert [type(layer) is RingLayer for layer in kept.layers] == [
            bool(is_sliding) for is_sliding in kept.is_sliding
        ]
        assert kept.is_sliding == sliding
        assert made.replayed == 2 * 18 and made.failed is None
        assert torch.equal(text(model, 8, num_beams=2).sequences, beams) and made.replayed == 2 * 18
        made.failed = RuntimeError("none is captured")
        assert equal(text(model, 20).logits, stock.logits)


def test_a_step_that_asks_for_positions_is_captured_with_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called without positions and masks the model works them out itself, which graphs then do as well; prompts in waves."""
    graphs_on_cpu.on_cpu(monkeypatch)
    folder = build("gpt_oss", tmp_path / "m", hidden_size=64, intermediate_size=32, sliding_window=6)
    ids = prompts(1)["input_ids"]

    def logits(model: Any) -> list[torch.Tensor]:
        cache, out = StaticCache(config=model.config, max_cache_len=40), []
        with torch.no_grad():
            for wave in (ids[:, :4], ids[:, 4:], ids[:, :7], *ids[:, :9].split(1, 1)):
                out.append(model(input_ids=wave, past_key_values=cache).logits)
        return out

    with engine(folder, tmp_path / "stores", 4) as (model, executor, stack):
        stock = logits(model)
        made = StepGraphs(model, executor, stack)
        assert equal(logits(model), stock)
        assert made.replayed == 8 and made.failed is None


def test_a_capture_that_fails_leaves_the_ring_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs_on_cpu.on_cpu(monkeypatch)
    folder = build("gpt_oss", tmp_path / "m", hidden_size=64, intermediate_size=32, sliding_window=6)
    with engine(folder, tmp_path / "stores", 4) as (model, executor, stack):
        stock = text(model, 6)
        made = StepGraphs(model, executor, stack)
        handle = model.model.layers[2].register_forward_pre_hook(
            lambda _, args: None if graphs_on_cpu.Graph.capturing is None else args[0].sum().item()
        )
        ours = text(model, 6)
        handle.remove()
        assert made.failed is not None and made.captured == 0
        assert equal(ours.logits, stock.logits)
