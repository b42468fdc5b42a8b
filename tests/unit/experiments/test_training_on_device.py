"""The comparison of training on two devices, with the processor on both sides."""

from pathlib import Path

import pytest

from rgpu.experiments.benching import training


def test_a_row_with_equal_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EPOCHS", 1)
    monkeypatch.setattr(training, "SEQUENCES", 1)
    monkeypatch.setattr(training, "FAMILIES", {"low_rank": training.LowRank})
    monkeypatch.setattr(training.torch.cuda, "synchronize", lambda: None)
    (row,) = training.compare(Path(__file__).parents[3], "cpu")
    assert set(row) == set(training.COLUMNS) and row["near"]
    assert row["recall_layer"] == row["recall_layer_cpu"] > 0.3 and row["fit_s"] > 0
