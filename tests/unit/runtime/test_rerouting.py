"""Sessions with a lossy mode: bit for bit the stock model with a hook that does the same, and replayed as they decided."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import InputError
from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.policies.gate_score import GateScore
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.quant.formats import by_name
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.loading import load_dequantised, load_resident
from rgpu.runtime.lossy import Lossy, LowPrecision, Skip, Substitute
from rgpu.runtime.session import OffloadSession
from rgpu.store.convert import StoreForm, open_store
from rgpu.traces.moe_layers import moe_layers
from rgpu.traces.trace import PADDING
from rgpu.types import MoEShape
from tests.live_models import LAYERS, TOP_K, Case, generate, prompts
from tests.lossy_oracle import hooked, skipped, substituted
from tests.unit.runtime.test_session import Wild

POOL = PoolConfig("layer", 4)


def opened(folder: Path, cache: Path, mode: Lossy | None, policy: Any = None, **options: Any) -> OffloadSession:
    def controller(shape: MoEShape) -> Controller:
        return Controller(policy or Lru(), shape, options.get("pool", POOL))

    chosen = {"make_controller": controller} | {n: v for n, v in options.items() if n != "pool"}
    return OffloadSession.open(folder, cache=cache, lossy=mode, kernel=CpuCompute, **chosen)


def top(_: int, ids_TK: np.ndarray, weights_TK: np.ndarray, __: Any) -> np.ndarray:
    """The first expert alone; padding rows, where all weights are equal, keep all."""
    return np.where(weights_TK < weights_TK.max(1, keepdims=True), -1, ids_TK)


def stock(folder: Path) -> Any:
    return load_resident(folder, read_architecture(folder), torch.float32)


@pytest.mark.parametrize("mode", [Skip(0.0), Skip(0.0, "sum", hits=True), Substitute(1.1, None), Substitute(-1.0, 0.0)])
def test_with_a_threshold_that_nothing_passes_it_is_the_exact_run(
    cases: dict[str, Case], cache: Path, mode: Lossy
) -> None:
    case = cases["qwen3_moe"]
    inputs, sequences, logits = case.stock[4]
    with opened(case.folder, cache, None) as exact, opened(case.folder, cache, mode) as session:
        generate(exact.model, inputs)
        got, got_logits = generate(session.model, inputs)
        assert torch.equal(got, sequences)
        assert all(torch.equal(a, b) for a, b in zip(got_logits, logits, strict=True))
        assert session.log == exact.log
        assert session.rerouter is not None and session.rerouter.section()[mode.did] == 0
        assert (session.trace().expert_ids == exact.trace().expert_ids).all()


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["qwen3_moe", "olmoe"])
def test_all_but_the_top_expert_skipped(
    cases: dict[str, Case], cache: Path, kind: str, batch: int, renormalise: bool
) -> None:
    folder, inputs = cases[kind].folder, prompts(batch)
    with opened(folder, cache, Skip(1.0, hits=True, renormalise=renormalise)) as session:
        got, got_logits = generate(session.model, inputs)
        assert session.rerouter is not None
        section, trace = session.rerouter.section(), session.trace()
    model = stock(folder)
    hooked(model, Controller(Lru(), session.shape, POOL), top, renormalise)
    expected, logits = generate(model, inputs)
    assert torch.equal(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(got_logits, logits, strict=True))
    assert trace.phase is not None
    real_N: np.ndarray = np.asarray(trace.phase) != PADDING
    assert section["assignments"] == real_N.sum() * LAYERS * TOP_K
    assert (
        section["skipped"] == (trace.expert_ids == trace.missing)[real_N].sum() == real_N.sum() * LAYERS * (TOP_K - 1)
    )
    assert section["skipped_per_token"] == LAYERS * (TOP_K - 1) and section["rows_changed"] == 1


MODES: dict[str, tuple[Lossy, Any]] = {
    "skip": (Skip(0.9), lambda ids, w, there, _: skipped(ids, w, there, 0.9, "largest", False)),
    "skip_sum": (Skip(0.4, "sum"), lambda ids, w, there, _: skipped(ids, w, there, 0.4, "sum", False)),
    "any": (Substitute(-1.0, None), lambda ids, w, there, rows: substituted(ids, w, there, rows, -1, None, "largest")),
    "near": (Substitute(0.1, None), lambda ids, w, there, rows: substituted(ids, w, there, rows, 0.1, None, "largest")),
    "light": (Substitute(-1.0, 0.9), lambda ids, w, there, rows: substituted(ids, w, there, rows, -1, 0.9, "largest")),
}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", MODES)
def test_as_the_stock_model_with_a_hook(cases: dict[str, Case], cache: Path, name: str, batch: int) -> None:
    """The hook asks a controller of its own, which sees the same events; the trace of the run is what was computed."""
    (mode, oracle), folder, inputs = MODES[name], cases["qwen3_moe"].folder, prompts(batch)
    with opened(folder, cache, mode) as session:
        got, got_logits = generate(session.model, inputs)
        trace, log = session.trace(), list(session.log)
        assert session.rerouter is not None
        section, passes = session.rerouter.section(), session.telemetry.summary()["per_pass"]
    model = stock(folder)
    rows = [layer.router.weight.detach().numpy() for layer in moe_layers(model)]
    again = Controller(Lru(), session.shape, POOL)
    hooked(model, again, lambda layer, ids, w, there: oracle(ids, w, there, rows[layer]))
    expected, logits = generate(model, inputs)
    assert torch.equal(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(got_logits, logits, strict=True))
    assert [entry[2:] for entry in log] == [entry[2:] for entry in again.log]
    replayed = replay(trace, Lru(), POOL, log=True)
    assert replayed.log == log
    assert trace.header.provenance["lossy"] == mode.settings()
    assert 0 < section[mode.did] < section["assignments"] and 0 < section["gate_weight"] < 1
    assert section["not_loaded"] > 0
    for column in (mode.did, "not_loaded"):
        assert sum(row[column] for row in passes) == section[column]


@pytest.mark.parametrize("policy", [GateScore(), OnDemand()])
@pytest.mark.parametrize("mode", [Skip(0.9), LowPrecision(0.9)])
def test_replay_of_other_policies_and_of_prefetching(wide: Path, cache: Path, mode: Lossy, policy: Any) -> None:
    with opened(wide, cache, mode, policy, pool=PoolConfig("global", 9)) as session:
        generate(session.model, prompts(4))
        assert replay(session.trace(), policy, PoolConfig("global", 9), log=True).log == session.log
    wild, again = Wild(), Wild()
    make = lambda shape: Controller(policy, shape, POOL, predictor=wild, planner=wild)  # noqa: E731
    with opened(wide, cache, mode, make_controller=make) as session:
        generate(session.model, prompts(1))
        stepped = Controller(policy, session.shape, POOL, predictor=again, planner=again)
        assert (session.trace().expert_ids == session.trace().missing).any()
        replay_events(stepped, routing_events(session.trace()))
        assert stepped.log == session.log


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("form", ["int4", "int8"])
def test_low_precision_copies_serve_what_they_should(wide: Path, cache: Path, form: str, batch: int) -> None:
    inputs = prompts(batch)
    mode = LowPrecision(0.9, format=form)
    with opened(wide, cache, mode) as session:
        got, got_logits = generate(session.model, inputs)
        log = list(session.log)
        assert replay(session.trace(), Lru(), POOL, log=True).log == log
        assert session.rerouter is not None and session.rerouter.counts.changed > 0
        assert session.memory()["low_precision_bytes"] > 0
    architecture, rounding = read_architecture(wide), by_name(form, group=32)
    with closing(open_store(wide, StoreForm(None, quantize=rounding), cache=cache)) as store:
        copies = load_dequantised(wide, architecture, store, torch.float32)
    model, again = stock(wide), Controller(Lru(), session.shape, POOL)
    hooked(model, again, lambda _, ids, w, there: skipped(ids, w, there, 0.9, "largest", False), low=copies)
    expected, logits = generate(model, inputs)
    assert torch.equal(got, expected)
    assert [entry[2:] for entry in log] == [entry[2:] for entry in again.log]
    for a, b in zip(got_logits, logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_quantised_experts_skip_too(wide: Path, cache: Path) -> None:
    """What is left out of a kernel's event is no number there, whatever lay in its memory."""
    with opened(wide, cache, Skip(1.0, hits=True), quantize=by_name("int8", group=32)) as session:
        got, got_logits = generate(session.model, prompts(4))
        copies = load_dequantised(wide, session.architecture, session.store, torch.float32)
        shape = session.shape
    hooked(copies, Controller(Lru(), shape, POOL), top)
    expected, logits = generate(copies, prompts(4))
    assert torch.equal(got, expected)
    for a, b in zip(got_logits, logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_low_precision(wide: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="quantised already"):
        opened(wide, cache, LowPrecision(), quantize=by_name("int8"))
    with pytest.raises(InputError, match="multiple of 64"):
        opened(wide, cache, LowPrecision(group=64))


def test_holes_of_other_traces_are_still_refused(cases: dict[str, Case], cache: Path) -> None:
    with opened(cases["qwen3_moe"].folder, cache, Skip(0.9)) as session:
        generate(session.model, prompts(1))
        trace = session.trace()
    assert any((event.experts_TK == -1).any() for event in routing_events(trace))
    del trace.header.provenance["lossy"]
    with pytest.raises(InputError, match="not recorded"):
        next(routing_events(trace))
