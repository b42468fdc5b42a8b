"""Which steps are captured, and that everything is put back. Graphs are stood in for by ones that compute while they are
captured and do nothing when they are replayed, so a step is checked in the pass that captures it."""

import contextlib
import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.generation.continuous_batching  # noqa: F401  (reads torch.cuda's classes when it is imported)

from rgpu.errors import RgpuError
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime import captured_step, step_graphs
from rgpu.runtime.step_graphs import StepGraphs
from tests.live_models import LAYERS, build, prompts
from tests.unit.runtime.test_device_executor import Late, opened


class Graph:
    """A CUDA graph's calls, in the order that CUDA allows."""

    capturing: "Graph | None" = None

    def __init__(self) -> None:
        self.state = "new"

    def capture_begin(self, **_: Any) -> None:
        assert Graph.capturing is None and self.state == "new"
        Graph.capturing = self

    def capture_end(self) -> None:
        assert Graph.capturing is self
        Graph.capturing, self.state = None, "captured"

    def replay(self) -> None:
        assert Graph.capturing is None and self.state == "captured"


@pytest.fixture
def graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any, StepGraphs, ExitStack]]:
    """(session, late device, graphs, what undoes them) of a model with all experts resident."""
    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None, query=lambda: True)
    fakes = {"CUDAGraph": Graph, "graph_pool_handle": lambda: 0, "synchronize": lambda: None, "current_device": lambda: 0,
             "current_stream": lambda *_: stream, "stream": lambda _: contextlib.nullcontext()}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(captured_step, "_capture_stream", lambda _: stream)
    monkeypatch.setattr(step_graphs, "_on_device", lambda _: True)
    Graph.capturing = None
    folder, pool = build("qwen3_moe", tmp_path / "m", hidden_size=64, moe_intermediate_size=32), PoolConfig("layer", 10)
    with opened(folder, tmp_path / "stores", Lru(), pool) as session, ExitStack() as stack:
        late = Late(session, lambda shape: Controller(Lru(), shape, pool), "fetch", 0)
        yield session, late, StepGraphs(session.model, late.executor, stack), stack


def text(model: Any, tokens: int, **options: Any) -> Any:
    return model.generate(
        **prompts(4), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, disable_compile=True,
        output_logits=True, return_dict_in_generate=True, **({"cache_implementation": "static"} | options),
    )  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
def test_the_second_step_of_a_kind_is_captured(graphs: Any, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    session, late, made, stack = graphs
    usual = text(session.model, 3, cache_implementation=None)
    assert (made.captured, made.replayed) == (0, 0)  # a growing cache goes the usual way
    late.executor.table.host_LE[:] = (
        torch.arange(10).repeat(LAYERS, 1).numpy() if whole else late.executor.table.host_LE
    )
    if not whole:  # one expert that no step needs is in no slot, so the host is asked
        monkeypatch.setattr(late.executor.table, "host_LE", Seldom(late.executor.table.host_LE))
    before = late.controller.accesses
    static = text(session.model, 3)
    assert (made.captured, made.replayed, made.failed) == (1, 1, None)
    (captured,) = made._captured.values()
    assert len(captured.graphs) == (1 if whole else LAYERS + 1) and sum(map(len, captured.stops)) == LAYERS
    assert late.controller.accesses > before
    for ours, theirs in zip(static.logits, usual.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    first = made._captured
    text(session.model, 4)  # another cache: what pointed into the old one is gone
    assert made.captured == 2 and len(first) == 1
    stack.close()
    assert "forward" not in vars(session.model) and not made._captured and made._executor is None
    text(session.model, 3)
    assert made.captured == 2


def test_the_cache_before_is_gone_when_the_next_text_begins(graphs: Any) -> None:
    """A prompt takes the most memory: the old text's cache must not be beside it."""
    session, _, made, _ = graphs
    cache = weakref.ref(text(session.model, 3)["past_key_values"])
    assert made.captured == 1
    alive: list[bool] = []

    def look(*_: Any) -> None:
        gc.collect()
        alive.append(cache() is not None)

    hook = session.model.model.layers[0].register_forward_pre_hook(look)
    text(session.model, 2)
    hook.remove()
    assert alive[0] is False and cache() is None


class Seldom:
    """A table on the host whose last expert always looks absent to who asks for all."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape = array, array.shape

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.array[key] = value

    def __ge__(self, _: int) -> Any:
        return torch.zeros(1, dtype=torch.bool)


@pytest.mark.parametrize("options", [{"output_hidden_states": True}, {"num_beams": 3}])
def test_what_goes_the_usual_way(graphs: Any, options: dict[str, Any]) -> None:
    """Outputs that would share a buffer; caches whose tensors beams put others in place of."""
    session, _, made, _ = graphs
    usual = text(session.model, 4, cache_implementation=None, **options)
    static = text(session.model, 4, **options)
    assert made.replayed == 0
    assert torch.equal(usual.sequences, static.sequences)


def test_a_model_that_cannot_be_captured_runs_without_graphs(graphs: Any, caplog: pytest.LogCaptureFixture) -> None:
    session, late, made, _ = graphs
    usual = text(session.model, 4, cache_implementation=None)

    def waits(*_: Any, **__: Any) -> Any:
        if Graph.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    handle = session.model.model.layers[0].register_forward_pre_hook(waits)
    static = text(session.model, 4)
    handle.remove()
    assert torch.equal(usual.sequences, static.sequences)
    assert (made.captured, made.replayed) == (0, 0) and "not permitted" in str(made.failed)
    assert Graph.capturing is None and late.executor.step == late.executor.at_once
    assert "without CUDA graphs" in caplog.text


def test_a_step_interrupted_while_it_waits_is_the_last(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, late, made, _ = graphs

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(captured_step.RoutedWords, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        text(session.model, 4)
    monkeypatch.undo()
    assert made.replayed == 1 and late.executor.step == late.executor.at_once
    with pytest.raises(RgpuError, match="cut short; close the session"):
        text(session.model, 4, cache_implementation=None)


def test_outputs_of_steps_are_apart(graphs: Any) -> None:
    session, _, made, _ = graphs
    seen: list[Any] = []
    handle = session.model.register_forward_hook(lambda *args: seen.append(args[2].logits))
    text(session.model, 5)
    handle.remove()
    assert made.replayed == 3 and len({logits.data_ptr() for logits in seen}) == len(seen)
