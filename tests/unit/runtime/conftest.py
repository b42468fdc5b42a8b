"""Models that live inference is tried on, what stock transformers generates with them, and a folder for their stores."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.loading import load_resident
from rgpu.runtime.session import OffloadSession
from rgpu.traces.trace import Trace
from tests.live_models import Case, build, generate, prompts
from tests.unit.runtime.generating import with_tokenizer


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    torch.set_num_threads(1)
    made = {}
    for kind in ("qwen3_moe", "olmoe"):
        folder = build(kind, tmp_path_factory.mktemp(kind))
        model = load_resident(folder, read_architecture(folder), torch.float32)
        made[kind] = Case(folder, {b: (prompts(b), *generate(model, prompts(b))) for b in (1, 4)})
    return made


@pytest.fixture(scope="session")
def calibration(cases: dict[str, Case], cache: Path) -> Trace:
    """What the Qwen3-MoE case routes, hidden states included."""
    with OffloadSession.open(
        cases["qwen3_moe"].folder,
        lambda shape: Controller(Lru(), shape, PoolConfig("layer", 4)),
        cache=cache,
        hidden=True,
    ) as session:
        generate(session.model, cases["qwen3_moe"].stock[1][0])
        return session.trace()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def stores(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands keep their stores in `cache`."""
    monkeypatch.setenv("RGPU_CACHE", str(cache))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE whose experts the quantised formats can hold, with a tokenizer and a chat template."""
    folder = build("qwen3_moe", tmp_path_factory.mktemp("wide"), hidden_size=64, moe_intermediate_size=32)
    return with_tokenizer(folder, "w5 {{ messages[0]['content'] }} w6")
