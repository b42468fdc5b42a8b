"""Live inference from a slot pool: bit-identical to the stock model, decision for decision what replay says."""

from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import rgpu.conf
from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from rgpu.runtime.session import OffloadSession
from rgpu.traces.trace import Trace
from rgpu.types import ExpertKey, RoutingEvent
from tests.live_models import EXPERTS, LAYERS, Case, generate

POLICIES = sorted(p.stem for p in Path(next(iter(rgpu.conf.__path__))).glob("policy/*.yaml") if p.stem != "plain")


def policy_of(name: str) -> Any:
    path = Path(next(iter(rgpu.conf.__path__))) / "policy" / f"{name}.yaml"
    return hydra.utils.instantiate(OmegaConf.load(path))


def check(
    case: Case, cache: Path, batch: int, policy: Any, pool: PoolConfig, store: str = "disk", **arguments: Any
) -> tuple[Trace, Controller]:
    """Run; compare with the stock model bit for bit, with the replay of the run's own trace decision for decision."""
    inputs, sequences, logits = case.stock[batch]
    hidden = policy.traits.feature == "hidden"
    with OffloadSession.open(
        case.folder, lambda shape: Controller(policy, shape, pool, **arguments), store=store, cache=cache, hidden=hidden
    ) as session:
        got, got_logits = generate(session.model, inputs)
        trace, controller = session.trace(), session.controller
    assert torch.equal(got, sequences)
    assert len(got_logits) == len(logits)
    assert all(torch.equal(a, b) for a, b in zip(got_logits, logits, strict=True))
    if "predictor" not in arguments:
        replayed = replay(trace, policy, pool, calibration=arguments.get("calibration"), log=True)
        assert replayed.log == session.log
        assert (replayed.hits, replayed.accesses) == (controller.hits, controller.accesses)
    return trace, controller


@pytest.mark.parametrize("slots", [1, 2, 3, 8, EXPERTS])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["qwen3_moe", "olmoe"])
def test_output_is_bit_identical_and_replay_agrees(
    cases: dict[str, Case], cache: Path, kind: str, batch: int, slots: int
) -> None:
    trace, controller = check(cases[kind], cache, batch, Lru(), PoolConfig("layer", slots))
    assert controller.hits < controller.accesses
    assert trace.sequences == batch
    assert trace.phase is not None
    assert bool((trace.phase == 2).any()) == (batch > 1)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_live_policy(cases: dict[str, Case], cache: Path, calibration: Trace, name: str, scope: str) -> None:
    policy, case = policy_of(name), cases["qwen3_moe"]
    pool = PoolConfig(scope, 4 if scope == "layer" else 7)
    if policy.traits.needs_future:
        with pytest.raises(InputError, match="future"):
            check(case, cache, 4, policy, pool)
        return
    arguments: dict[str, Any] = {"calibration": calibration} if policy.traits.calibration else {}
    check(case, cache, 4, policy, pool, **arguments)


@pytest.mark.parametrize("slots", [1, 5])
def test_global_pool_and_a_store_in_ram(cases: dict[str, Case], cache: Path, slots: int) -> None:
    check(cases["olmoe"], cache, 4, Lru(), PoolConfig("global", slots), store="ram")


class Wild:
    """A predictor and planner in one that loads random experts of random layers after every event."""

    name = "wild"

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.seen: list[tuple[int, int, list[int]]] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def observe(self, event: RoutingEvent) -> None:
        if event.token_T is not None:
            self.seen.append((event.layer, event.pass_id, event.token_T.tolist()))

    def predict(self) -> Forecast:
        return Forecast(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, EXPERTS), np.float32))

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        count = self.random.integers(0, 6)
        return [ExpertKey(int(self.random.integers(LAYERS)), int(self.random.integers(EXPERTS))) for _ in range(count)]


@pytest.mark.parametrize(("scope", "slots"), [("layer", 1), ("layer", 4), ("global", 2), ("global", 12)])
@pytest.mark.parametrize("name", ["lru", "on_demand", "rotary"])
def test_prefetch_changes_no_bit(
    cases: dict[str, Case], cache: Path, calibration: Trace, name: str, scope: str, slots: int
) -> None:
    policy, pool, case, batch = policy_of(name), PoolConfig(scope, slots), cases["qwen3_moe"], 1 + 3 * (slots % 4 > 0)
    arguments: dict[str, Any] = {"calibration": calibration} if policy.traits.calibration else {}
    wild, again = Wild(), Wild()
    trace, live = check(case, cache, batch, policy, pool, predictor=wild, planner=wild, **arguments)
    replayed = Controller(policy, live.shape, pool, predictor=again, planner=again, **arguments)
    replay_events(replayed, routing_events(trace))
    assert replayed.log == live.log
    assert again.seen and again.seen == wild.seen[-len(again.seen) :]
    assert again.resets == sum(event.fresh for event in routing_events(trace)) > 0 and wild.resets >= again.resets
    assert (replayed.hits, replayed.prefetch_hits) == (live.hits, live.prefetch_hits)


def test_rows_that_end_early_are_recorded_as_computed(cases: dict[str, Case], cache: Path) -> None:
    """A finished row of a batch goes on being computed, so its experts are part of the events."""
    case, pool = cases["qwen3_moe"], PoolConfig("layer", 3)
    inputs, sequences, _ = case.stock[4]
    stop = int(sequences[0, 10])  # a token that some row generates before the end
    with OffloadSession.open(case.folder, lambda shape: Controller(Lru(), shape, pool), cache=cache) as session:
        session.model.generation_config.eos_token_id = stop
        session.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        trace = session.trace()
        assert replay(trace, Lru(), pool, log=True).log == session.log
    assert len(set(np.diff(trace.seq_offsets).tolist())) == 1


def test_bfloat16_gives_the_stock_tokens(cases: dict[str, Case], cache: Path) -> None:
    from rgpu.runtime.architecture import read_architecture
    from rgpu.runtime.loading import load_resident

    case, pool = cases["qwen3_moe"], PoolConfig("layer", 2)
    inputs = case.stock[4][0]
    stock = load_resident(case.folder, read_architecture(case.folder), torch.bfloat16)
    expected, _ = generate(stock, inputs)
    with OffloadSession.open(
        case.folder, lambda shape: Controller(Lru(), shape, pool), cache=cache, dtype=torch.bfloat16
    ) as session:
        assert torch.equal(generate(session.model, inputs)[0], expected)


def test_nothing_is_left_patched_and_saving_is_refused(cases: dict[str, Case], cache: Path, tmp_path: Path) -> None:
    import transformers.models.qwen3_moe.modeling_qwen3_moe as module
    from transformers.monkey_patching import get_patch_mapping

    before = module.Qwen3MoeExperts
    pool = PoolConfig("layer", 2)
    with OffloadSession.open(
        cases["qwen3_moe"].folder, lambda shape: Controller(Lru(), shape, pool), cache=cache
    ) as session:
        assert module.Qwen3MoeExperts is before
        assert not get_patch_mapping()
        assert not any("gate_up_proj" in name for name, _ in session.model.named_parameters())
        for model in (session.model, session.model.model):
            with pytest.raises(InputError, match="cannot save"):
                model.save_pretrained(tmp_path / "out")
        with pytest.raises(InputError, match="cannot save"):
            session.model.state_dict()
        inner = session.model
    with pytest.raises(InputError, match="closed"):
        generate(inner, cases["qwen3_moe"].stock[1][0])


def test_failing_constructor_leaves_transformers_unpatched(cases: dict[str, Case], monkeypatch: Any) -> None:
    import transformers.models.qwen3_moe.modeling_qwen3_moe as module

    from rgpu.runtime.architecture import read_architecture
    from rgpu.runtime.loading import load_dense

    folder, before = cases["qwen3_moe"].folder, module.Qwen3MoeExperts
    architecture = read_architecture(folder)
    monkeypatch.setattr(module.Qwen3MoeRMSNorm, "__init__", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_dense(folder, architecture, torch.float32)
    assert module.Qwen3MoeExperts is before


def test_a_failing_copy_ends_the_generation(cases: dict[str, Case], cache: Path, monkeypatch: Any) -> None:
    from rgpu.transfer.errors import TransferError

    pool, case = PoolConfig("layer", 2), cases["qwen3_moe"]
    with OffloadSession.open(case.folder, lambda shape: Controller(Lru(), shape, pool), cache=cache) as session:

        def broken(key: ExpertKey) -> np.ndarray:
            raise OSError("device went away")

        monkeypatch.setattr(session.store, "buffer", broken)
        with pytest.raises(TransferError, match="device went away"):
            generate(session.model, case.stock[1][0])


def test_two_generations_in_one_session_stay_warm(cases: dict[str, Case], cache: Path) -> None:
    pool, case = PoolConfig("layer", 4), cases["qwen3_moe"]
    with OffloadSession.open(case.folder, lambda shape: Controller(Lru(), shape, pool), cache=cache) as session:
        for batch in (1, 4, 1):
            assert torch.equal(generate(session.model, case.stock[batch][0])[0], case.stock[batch][1])
        trace = session.trace()
        assert trace.sequences == 6
        assert replay(trace, Lru(), pool, log=True).log == session.log
