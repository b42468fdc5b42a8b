"""Telemetry of passes: on a model that only counts, and on a tiny one whose numbers must add up."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.policies.loop import COUNTS, DEMAND_LOADS, HITS, LOADED_BYTES
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime import telemetry as module
from rgpu.runtime.session import OffloadSession
from rgpu.runtime.telemetry import DEVICE, LINK, PassRow, Telemetry
from rgpu.transfer.counts import Span, TransferCounts
from rgpu.types import ExpertKey
from tests.live_models import LAYERS, Case, generate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds 0, 1, 2, ... one at each look."""
    ticks: Iterator[int] = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


def attached(telemetry: Telemetry) -> tuple[Any, Any, Any, ExitStack]:
    """A model that does nothing, a controller and a transfer engine whose counts a test sets."""
    model, stack = torch.nn.Identity(), ExitStack()
    controller = SimpleNamespace(counts=np.zeros(COUNTS, np.int64), slots=[3, 4], pools=2, staging=1)
    done = TransferCounts()
    telemetry.attach(model, controller, SimpleNamespace(counts=lambda: done), stack)
    return model, controller, done, stack


def test_a_row_is_what_was_counted_within_its_pass(clock: None) -> None:
    watched = Telemetry()
    model, controller, done, stack = attached(watched)
    controller.counts[HITS], done.stall_s = 7, 5.0  # of before
    model.register_forward_hook(lambda *_: count(controller, done), prepend=True)

    def count(controller: Any, done: Any) -> None:
        controller.counts[[HITS, DEMAND_LOADS, LOADED_BYTES]] += [3, 2, 200]
        done.stall_s, done.queued = done.stall_s + 0.25, 4

    model(torch.zeros(2, 9, dtype=torch.long))
    model(torch.zeros(2, 1, dtype=torch.long))
    assert [(row.rows, row.end_s - row.begin_s, row.stall_s, row.queued) for row in watched.rows] == [
        (18, 1.0, 0.25, 4), (2, 1.0, 0.25, 4),
    ]  # fmt: skip
    made = watched.summary()
    assert [(row["hits"], row["misses"], row["bytes_loaded"]) for row in made["per_pass"]] == [(3, 2, 200)] * 2
    stack.close()
    model(torch.zeros(2, 1, dtype=torch.long))
    assert len(watched.rows) == 2
    watched.clear()
    assert watched.rows == [] and watched.slices is None


def test_the_first_pass_is_apart_and_the_95th_percentile_is_high() -> None:
    watched = Telemetry()
    ends = [10.0, *(1.0 for _ in range(18)), 5.0, 5.0]
    none = np.zeros(COUNTS, np.int64)
    watched.rows = [PassRow(1, 0.0, end, none, 0.5, at) for at, end in enumerate(ends)]
    made = watched.summary()
    assert (made["ttft_s"], made["tpot_s"], made["stall_s"], made["queued_most"]) == (10.0, 1.0, 10.5, 20)
    assert 1.0 < made["tpot_p95_s"] <= 5.0


def test_nothing_seen() -> None:
    made = Telemetry().summary()
    assert (made["ttft_s"], made["tpot_s"], made["tpot_p95_s"], made["stall_s"]) == (None, None, None, 0)


def test_pieces_of_copies() -> None:
    seen: list[Span] = []
    span = Span(1.0, 1.5, ExpertKey(2, 7), 0, 3, "demand", 64)
    quiet, watched = Telemetry(also=seen.append), Telemetry(slices=True)
    for one in (quiet, watched):
        one.observe(span)
    assert seen == [span] and quiet.slices is None
    assert watched.slices is not None
    (piece,) = watched.slices
    assert (piece.track, piece.name, piece.begin_s, piece.end_s) == (LINK, "copy", 1.0, 1.5)
    assert piece.args == {"layer": 2, "expert": 7, "bytes": 64, "slot": 3}
    watched.observe(Span(2.0, 2.5, ExpertKey(2, 8), 0, 4, "ahead", 64))
    assert watched.slices[1].name == "copy ahead"
    watched.clear()
    assert watched.slices == []


def test_rows_and_slices_of_a_run_add_up(cases: dict[str, Case], cache: Path) -> None:
    case, watched = cases["qwen3_moe"], Telemetry(slices=True)
    with OffloadSession.open(
        case.folder, lambda shape: Controller(Lru(), shape, PoolConfig("layer", 4)), cache=cache, telemetry=watched
    ) as session:
        generate(session.model, case.stock[4][0])
        controller, moved = session.controller, session.transfer.counts()
    rows = watched.summary()["per_pass"]
    assert [row["rows"] for row in rows] == [36, 4, 4, 4, 4, 4]
    for name, total in (("hits", controller.hits), ("misses", controller.accesses - controller.hits)):
        assert sum(row[name] for row in rows) == total > 0
    assert sum(row["bytes_loaded"] for row in rows) == int(controller.counts[LOADED_BYTES])
    assert 0 <= watched.summary()["stall_s"] <= moved.stall_s
    assert watched.slices is not None
    device = [s for s in watched.slices if s.track == DEVICE]
    assert [s.name for s in device] == (["attention and router", "experts"] * LAYERS + ["head"]) * 6
    assert [s.args["layer"] for s in device[: 2 * LAYERS]] == [0, 0, 1, 1, 2, 2]
    assert all(a.end_s <= b.begin_s for a, b in zip(device, device[1:], strict=False))  # one after another
    copies = [s for s in watched.slices if s.track == LINK]
    assert sum(s.args["bytes"] for s in copies) == moved.demand_bytes + moved.ahead_bytes > 0
