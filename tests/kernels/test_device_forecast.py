"""Maps on a device, which here is the CPU with the interpreter: the bits and decisions of the host."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.contracts import LinearForecast
from rgpu.errors import InputError
from rgpu.experiments.injected import placed, with_kernel
from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.kernels.device_forecast import DeviceForecast
from rgpu.kernels.linear_forecast import linear_forecast
from rgpu.planning.top_k import TopK
from rgpu.policies.loop import PREFETCH, PREFETCH_BUSY
from rgpu.policies.lru import Lru
from rgpu.predictors.ensemble import Ensemble
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.hidden import linear_reference
from rgpu.predictors.linear import Linear
from rgpu.predictors.mlp import Mlp
from rgpu.predictors.popularity import Popularity
from rgpu.quant.formats import by_name
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from rgpu.runtime.session import OffloadSession
from rgpu.types import MoEShape
from tests.live_models import build, generate, prompts
from tests.predicting import learnable_trace
from tests.unit.runtime.test_device_executor import Late


@pytest.mark.parametrize("tiny", [0.0, 1e-6])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_bits_of_the_reference(rows: int, tiny: float) -> None:
    rng, forecast = np.random.default_rng(rows), DeviceForecast("cpu")
    for _ in range(2):
        x_ND, weight_DM = (rng.normal(size=size).astype(np.float32) for size in ((rows, 37), (37, 70)))
        bias_M = rng.normal(size=70).astype(np.float32)
        for _ in range(2):
            found = forecast(x_ND.astype(np.float16), weight_DM, bias_M, tiny)
            want = linear_reference(x_ND.astype(np.float16), weight_DM, bias_M, tiny)
            assert found.dtype == np.float32 and found.shape == want.shape
            assert found.view(np.int32).tolist() == want.view(np.int32).tolist()
    assert forecast.nbytes == 2 * 4 * (37 + 1) * 70


def test_a_view_of_a_map_is_the_same_map() -> None:
    forecast, weight_LDM, bias_LM = DeviceForecast("cpu"), np.ones((2, 4, 6), np.float32), np.ones((2, 6), np.float32)
    weight_LDM[1] = 2
    for layer in (0, 1, 0, 1):
        found = forecast(np.ones((1, 4), np.float32), weight_LDM[layer], bias_LM[layer])
        assert found.tolist() == [[4.0 * (layer + 1) + 1] * 6]
    assert forecast.nbytes == weight_LDM.nbytes + bias_LM.nbytes


@pytest.mark.parametrize("kind", [Linear, Mlp])
def test_decisions_of_the_host(kind: type[Linear] | type[Mlp]) -> None:
    trace = learnable_trace(sequences=2, tokens=12)
    logs = []
    for forward in (linear_forecast, DeviceForecast("cpu")):
        predictor = with_kernel(kind(epochs=1, horizon=2).fit(trace), forward)
        planner = TopK(3, horizon=2, next_token=True)
        controller = Controller(Lru(), trace.shape, PoolConfig(slots=4), predictor=predictor, planner=planner)
        logs.append(replay_events(controller, routing_events(trace.select(np.array([0])))).log)
    assert logs[0] == logs[1] and logs[0]


def test_in_the_executor_of_a_gpu(tmp_path: Path) -> None:
    """On copies that run late, with forecasts of the model's own routers: text and decisions of the engine on a CPU."""
    folder = build("qwen3_moe", tmp_path / "model", hidden_size=64, moe_intermediate_size=32)
    rounding: Any = by_name("int4", group=32)

    def make(forward: LinearForecast) -> Callable[[MoEShape], Controller]:
        predictor = with_kernel(GateLookahead(folder, horizon=1).fit(), forward)
        return lambda shape: Controller(Lru(), shape, PoolConfig(slots=4), predictor=predictor, planner=TopK(3))

    with OffloadSession.open(
        folder, make(linear_forecast), cache=tmp_path / "stores", quantize=rounding, kernel=CpuCompute, record=False,
        hidden=True,
    ) as session:  # fmt: skip
        tokens, _ = generate(session.model, prompts(1))
        late = Late(session, make(DeviceForecast("cpu")), "fetch", 4, hidden=True)
        again, _ = generate(session.model, prompts(1))
        assert torch.equal(tokens, again)
        assert [e[2:] for e in late.controller.log] == [e[2:] for e in session.log]
        assert any(e[2] in (PREFETCH, PREFETCH_BUSY) for e in session.log)
        late.transfer.close()


@pytest.mark.parametrize(
    ("place", "device", "capped", "kind", "message"),
    [
        ("gpu", "cuda", False, Linear, "expected host or device"),
        ("device", "cpu", False, Linear, "device=cpu, predictor=linear"),
        ("device", "cuda", True, Linear, "a cap on memory"),
        ("device", "cuda", False, Popularity, "predictor=popularity"),
        ("device", "cuda", False, None, "no predictor"),
    ],
)
def test_where_it_cannot_be(
    place: str, device: str, capped: bool, kind: type[Linear] | type[Popularity] | None, message: str
) -> None:
    with pytest.raises(InputError, match=f"^forecast: got [^\n]*{message}[^\n]*$"):
        placed(None if kind is None else kind(), place, device, capped)


def test_the_host_s_kernel_by_default() -> None:
    assert placed(Linear(), "host", "cuda", True).forward is linear_forecast
    assert placed(None, "host", "cpu", False) is None
    ensemble = placed(Ensemble([Linear(), Popularity(), Mlp()]), "host", "cpu", False)
    kernels = [getattr(member, "forward", None) for member in ensemble.members]
    assert kernels == [linear_forecast, None, linear_forecast]
