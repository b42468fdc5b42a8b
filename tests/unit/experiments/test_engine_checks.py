"""What the engine's checks on a GPU would see: the whole text, not its first step."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rgpu.experiments.benching import engine_checks, growth_check
from rgpu.experiments.benching.engine_checks import _beside
from rgpu.experiments.benching.texts import Text, agree, far

B, N, V = 3, 6, 16


def text(seed: int = 0) -> Text:
    """Greedy tokens [B, N] and their logits, N of [B, V]."""
    logits = list(torch.randn(N, B, V, generator=torch.Generator().manual_seed(seed)))
    return torch.stack([step.argmax(1) for step in logits], 1), logits


def changed(made: Text, step: int, row: int, by: float) -> Text:
    logits = [values.clone() for values in made[1]]
    logits[step][row] += by  # the same token
    return made[0], logits


def test_every_step_is_compared() -> None:
    stock = text()
    assert far(stock, stock) == 0.0
    for step in range(N):
        assert far(changed(stock, step, 1, 0.5), stock) == pytest.approx(0.5 / float(stock[1][step].abs().max()))
        assert not far(changed(stock, step, 1, float("nan")), stock) < 1e9


def test_another_token_ends_a_row_after_its_step() -> None:
    stock = text()
    tokens, logits = changed(stock, 4, 1, 7.0)
    tokens = tokens.clone()
    tokens[1, 2] += 1  # a tie, say
    assert far((tokens, logits), stock) == 0.0 and agree((tokens, logits), stock) == "14 of 18 tokens alike"
    assert far(changed((tokens, logits), 2, 1, 0.5), stock) > 0.1
    assert far(changed((tokens, logits), 4, 0, 0.5), stock) > 0.1


@pytest.mark.parametrize("wrong", [None, "logits", "nan", "replayed", "served"])
def test_misses_on_the_processor_are_looked_at_in_every_step_and_in_graphs(
    wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = text()

    class Opened:
        def __init__(self, *_: Any, graphs: bool, **__: Any) -> None:
            self.model = graphs
            self.graphs = SimpleNamespace(replayed=0 if wrong == "replayed" else 4) if graphs else None

        def __enter__(self) -> "Opened":
            return self

        def __exit__(self, *_: object) -> None: ...

        def misses_by_handler(self) -> dict[str, int]:
            return {"cpu": 0 if wrong == "served" else 3}

    def generated(graphs: bool, **_: Any) -> Text:
        by = {"logits": 0.5, "nan": float("nan")}.get(wrong or "", 0.0)
        return changed(stock, N - 1, 0, by) if graphs else stock

    monkeypatch.setattr(engine_checks, "generated", generated)
    holds, found = _beside(Opened, "cpu", stock)
    assert holds is (wrong is None), found


@pytest.mark.parametrize("kept", [0, 5])
def test_what_growth_leaves_reserved_is_seen(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kept`: blocks of the whole cache that an allocator keeps beside it."""
    shape = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    block = 3 * 2 * growth_check.BATCH * 2 * 256 * 16 * 2
    after = [5, 5 + (growth_check.BLOCKS + kept) * block]
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: after.pop(0))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5 + (growth_check.BLOCKS + kept) * block)
    holds, found = growth_check.grown("cpu", shape)
    assert holds is not bool(kept) and "3 MiB held" in found, found
