"""A predictor that reads what enters a layer: asked before its attention runs, with the same decisions live and in replay."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import InputError
from rgpu.planning.top_k import TopK
from rgpu.policies.joint_forecast import JointForecast
from rgpu.policies.lru import Lru
from rgpu.predictors.pre_attention import PreAttention
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prefetching import RecordedForecasts
from rgpu.replay.stream import routing_events
from rgpu.runtime import before_attention
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.loading import load_resident
from rgpu.runtime.session import OffloadSession, sample_event
from rgpu.runtime.step_graphs import StepGraphs
from rgpu.traces import recorder
from rgpu.traces.moe_layers import decoder_layer, moe_layers
from rgpu.traces.recorder import TraceRecorder
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape
from tests import graphs_on_cpu
from tests.live_models import LAYERS, TOP_K, Case, build, generate, prompts
from tests.unit.runtime.test_device_executor import Late, opened
from tests.unit.runtime.test_session import check


def recorded(folder: Path, path: Path) -> Trace:
    model = load_resident(folder, read_architecture(folder), torch.float32)
    with TraceRecorder(model, path, hidden=True, router_logits=True, pre_attention=True), torch.no_grad():
        for _ in range(2):
            generate(model, prompts(1))
    return load_trace(path)


@pytest.fixture(scope="module")
def fitted(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> PreAttention:
    trace = recorded(cases["qwen3_moe"].folder, tmp_path_factory.mktemp("t") / "t.safetensors")
    return PreAttention(epochs=1, horizon=2).fit(trace)


def shape_of(predictor: PreAttention) -> MoEShape:
    schema = predictor.schema_
    return MoEShape(schema.layers, schema.experts, schema.top_k, schema.hidden)


def planner() -> TopK:
    return TopK(width=TOP_K, horizon=2, next_token=True)


@pytest.mark.parametrize(("scope", "slots"), [("layer", 4), ("global", 12)])
@pytest.mark.parametrize(("batch", "policy"), [(1, Lru()), (4, Lru()), (1, JointForecast()), (4, JointForecast())])
def test_a_live_run_is_its_replay(
    cases: dict[str, Case], cache: Path, fitted: PreAttention, batch: int, policy: Any, scope: str, slots: int
) -> None:
    pool = PoolConfig(scope, slots)
    trace, live = check(cases["qwen3_moe"], cache, batch, policy, pool, predictor=fitted, planner=planner())
    assert trace.pre_attention is not None and live.prefetch_hits > 0
    replayed = Controller(policy, live.shape, pool, predictor=fitted, planner=planner())
    assert replay_events(replayed, routing_events(trace)).log == live.log
    if batch == 1:
        all_at_once: Any = RecordedForecasts(fitted, trace)
        assert all_at_once.needs == fitted.needs
        again = Controller(policy, live.shape, pool, predictor=all_at_once, planner=planner())
        assert replay_events(again, routing_events(trace)).log == live.log


@pytest.mark.parametrize("handler", ["fetch", "zero_copy"])
def test_the_gpus_executor_decides_the_same(tmp_path: Path, cache: Path, handler: str) -> None:
    folder = build("qwen3_moe", tmp_path / "m", hidden_size=64, moe_intermediate_size=32)
    predictor = PreAttention(epochs=0, horizon=2).fit(recorded(folder, tmp_path / "t.safetensors"))
    pool = PoolConfig("layer", 4)

    def made(shape: Any) -> Controller:
        return Controller(Lru(), shape, pool, predictor=predictor, planner=planner())

    parts: dict[str, Any] = {"predictor": lambda: predictor, "planner": planner}
    with opened(folder, cache, Lru(), pool, **parts) as session, ExitStack() as stack:
        tokens, logits = generate(session.model, prompts(1))
        late = Late(session, made, handler, 3)
        before_attention.attach(session.model, late.executor, stack)
        again, values = generate(session.model, prompts(1))
        decided = [[(layer, *made) for layer, _, *made in c.log] for c in (session.controller, late.controller)]
        assert decided[0] == decided[1] and late.controller.prefetch_hits > 0
    assert torch.equal(again, tokens)
    assert all(torch.equal(a, b) for a, b in zip(values, logits, strict=True))


class Spy:
    """Writes down when it is asked, and what of the event there is then."""

    name = "spy"
    needs = ("pre_attention",)

    def __init__(self, inner: PreAttention, said: list[tuple[str, int]]) -> None:
        self.inner, self.said = inner, said

    def reset(self) -> None:
        self.inner.reset()

    def observe(self, event: Any) -> None:
        assert event.pre_attention_TD is not None
        self.said.append(("forecast", event.layer))
        self.inner.observe(event)

    def predict(self) -> Any:
        return self.inner.predict()


def test_a_forecast_is_made_between_the_experts_and_the_next_attention(
    cases: dict[str, Case], cache: Path, fitted: PreAttention
) -> None:
    said: list[tuple[str, int]] = []
    before = {}
    with OffloadSession.open(
        cases["qwen3_moe"].folder,
        lambda shape: Controller(Lru(), shape, PoolConfig("layer", 4), predictor=Spy(fitted, said), planner=planner()),
        cache=cache,
    ) as session:
        for index, layer in enumerate(moe_layers(session.model)):
            decoder = decoder_layer(session.model, layer)
            before[index] = len(decoder._forward_pre_hooks)
            decoder.self_attn.register_forward_pre_hook(lambda *_, index=index: said.append(("attention", index)))
            layer.experts.register_forward_hook(lambda *_, index=index: said.append(("experts", index)))
        session.model.generate(**prompts(1), max_new_tokens=2, do_sample=False)
    a_pass = [("attention", 0), ("experts", 0), ("forecast", 0), ("attention", 1), ("experts", 1), ("forecast", 1)]
    assert said == 2 * [*a_pass, ("attention", 2), ("forecast", 2), ("experts", 2)]  # the last layer's state was there
    assert [before[index] for index in range(LAYERS)] == [1, 2, 2]  # the recorder's, and the executor's
    assert all(not decoder_layer(session.model, layer)._forward_pre_hooks for layer in moe_layers(session.model))


CAPTURED: list[tuple[int, str, Any]] = [
    (4, "fetch", Lru()), (4, "zero_copy", Lru()), (10, "fetch", Lru()), (4, "fetch", JointForecast()),
]  # fmt: skip


@pytest.mark.parametrize(("slots", "handler", "policy"), CAPTURED)
def test_captured_steps_decide_and_record_the_same(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, slots: int, handler: str, policy: Any
) -> None:
    """Cut before attention too, or (every expert resident) in one piece: tokens, logits and decisions of steps without graphs,
    and a trace whose replay decides the same."""
    graphs_on_cpu.on_cpu(monkeypatch)
    monkeypatch.setattr(recorder, "is_capturing", lambda: graphs_on_cpu.Graph.capturing is not None)
    folder = build("qwen3_moe", tmp_path / "m", hidden_size=64, moe_intermediate_size=32)
    predictor = PreAttention(epochs=0, horizon=2).fit(recorded(folder, tmp_path / "t.safetensors"))
    pool = PoolConfig("layer", slots)
    said: list[tuple[str, int]] = []

    def made(shape: Any) -> Controller:
        hot = np.ones((shape.layers, shape.experts), np.int64) if slots == shape.experts else None
        return Controller(policy, shape, pool, predictor=Spy(predictor, said), planner=planner(), uses_LE=hot)

    def run(session: OffloadSession, path: Path, graphs: bool) -> tuple[Any, Controller]:
        with ExitStack() as stack:
            late = Late(session, made, handler, 3)
            make, late.executor._kernels = late.executor._make_kernel, {}
            late.executor._make_kernel = lambda: graphs_on_cpu.Kernel(make())
            before_attention.attach(session.model, late.executor, stack)
            recording = stack.enter_context(TraceRecorder(session.model, path, pre_attention=True, padding=True))
            late.executor.rows_of_pass = lambda: recording.tracker.current
            steps = StepGraphs(session.model, late.executor, stack) if graphs else None
            out = session.model.generate(
                **prompts(4), max_new_tokens=9, min_new_tokens=9, do_sample=False, pad_token_id=0, disable_compile=True,
                output_logits=True, return_dict_in_generate=True, cache_implementation="static",
            )  # fmt: skip
            if steps is not None:
                (captured,) = steps._captured.values()
                # ends before the experts of each layer, before attention of all but the first, and at the step's end
                assert len(captured.graphs) == (1 if slots == 10 else LAYERS + (LAYERS - 1) + 1)
                assert steps.replayed == 7 and steps.failed is None
            return out, late.controller

    with opened(folder, cache, Lru(), pool) as session:
        usual, before = run(session, tmp_path / "usual.safetensors", False)
        asked, said[:] = list(said), []
        replayed, after = run(session, tmp_path / "graphs.safetensors", True)
    assert torch.equal(usual.sequences, replayed.sequences) and said == asked
    assert all(torch.equal(a, b) for a, b in zip(usual.logits, replayed.logits, strict=True))
    assert before.log == after.log and (slots == 10 or after.prefetch_hits > 0)
    once, again = (load_trace(tmp_path / f"{name}.safetensors") for name in ("usual", "graphs"))
    assert once.pre_attention is not None and again.pre_attention is not None
    np.testing.assert_array_equal(once.pre_attention, again.pre_attention)
    assert replay_events(made(after.shape), routing_events(again)).log == after.log


def test_a_trace_without_the_states_is_refused(fitted: PreAttention) -> None:
    controller = Controller(Lru(), shape_of(fitted), PoolConfig("layer", 4), predictor=fitted, planner=planner())
    with pytest.raises(InputError, match="no state before attention.*pre_attention=true"):
        replay_events(controller, iter([sample_event(shape_of(fitted), hidden=True)]))
