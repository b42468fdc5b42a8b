"""Every family of experts runs from slots bit for bit as transformers' eager forward does."""

from pathlib import Path

import pytest
import torch

from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime import architecture
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.loading import load_resident
from rgpu.runtime.session import OffloadSession
from rgpu.types import Gate
from tests.live_models import EXPERTS, FAMILIES, build, generate, prompts


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_bit_identical_to_eager(kind: str, tmp_path: Path) -> None:
    folder = build(kind, tmp_path / "m")
    found = read_architecture(folder)
    stock = load_resident(folder, found, torch.float32)
    assert found.layer_ids == ((1, 2) if "first_k_dense_replace" in FAMILIES[kind] else (0, 1, 2))
    assert found.experts == EXPERTS
    assert found.gate == (Gate("gpt_oss", limit=7.0) if kind == "gpt_oss" else Gate("silu"))
    for batch in (1, 4):
        wanted, logits = generate(stock, prompts(batch))
        for slots, handler in ((2, "fetch"), (5, "split"), (4, "cpu")):
            with OffloadSession.open(
                folder,
                lambda shape: Controller(Lru(), shape, PoolConfig("layer", slots)),  # noqa: B023
                cache=tmp_path / "stores",
                handler=handler,
            ) as session:
                got, got_logits = generate(session.model, prompts(batch))
                assert 0 < session.controller.hits < session.controller.accesses
            assert torch.equal(got, wanted), (batch, slots, handler)
            assert all(torch.equal(a, b) for a, b in zip(got_logits, logits, strict=True)), (batch, slots, handler)


def test_experts_that_cannot_be_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "_UNABLE", {"has_bias": False})
    with pytest.raises(InputError, match="has_bias=True"):
        read_architecture(build("gpt_oss", tmp_path))
