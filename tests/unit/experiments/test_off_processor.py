"""Time that a pass waits for a processor: read outside the pass, one number a pass, none where nobody counts."""

import time
from pathlib import Path

import pytest
import torch

from rgpu.experiments.benching import off_processor
from rgpu.experiments.benching.off_processor import PassWaits, waited_seconds


def test_each_pass_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1.0, 1.5, 7.0, 7.0])
    monkeypatch.setattr(off_processor, "waited_seconds", lambda: next(readings))
    model = torch.nn.Linear(2, 2)
    order: list[str] = []
    model.register_forward_pre_hook(lambda *_: order.append(f"pass of {len(order)}"))
    waits = PassWaits(model)
    model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    waits.remove()
    model(torch.zeros(1, 2))
    assert waits.seconds == [0.5, 0.0]
    assert len(order) == 3


def test_waiting_never_runs_backwards() -> None:
    first = waited_seconds()
    time.sleep(0.01)
    assert waited_seconds() >= first >= 0.0


def test_where_nobody_counts_it_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(off_processor, "TASKS", tmp_path)
    assert waited_seconds() == 0.0
