"""What a live run reports: counts, times, its files; and progress on stderr while slots are filled."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.policies.loop import DEMAND_LOADS, FILL_LOADS, LOADED_BYTES, PROACTIVE_LOADS
from rgpu.replay.controller import Controller
from rgpu.results.provenance import write_atomic
from rgpu.runtime.session import OffloadSession
from rgpu.transfer.counts import Span


class FillBar:
    """How far the initial fill of the slots is: a bar on stderr, where that is a terminal and it takes over two seconds."""

    def __init__(self) -> None:
        self._bar: Any = None

    def expect(self, controller: Controller) -> None:
        """Before the fill of `controller` begins."""
        experts = controller.filled_first
        if experts and self._bar is None:
            total = experts * (max(controller.shape.expert_bytes) if controller.shape.expert_bytes else 0)
            self._bar = tqdm(total=total, desc="filling slots", unit="B", unit_scale=True, disable=None, delay=2)

    def __call__(self, span: Span) -> None:
        """A piece of a copy has landed."""
        if self._bar is not None:
            self._bar.update(span.nbytes)

    def close(self) -> None:
        """The fill is done, or given up."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


def counted(session: OffloadSession) -> dict[str, Any]:
    """What was decided, in counts; misses also by what served them."""
    controller = session.controller
    counts, hits = controller.counts, controller.hits
    demand, ahead, fill = (int(counts[c]) for c in (DEMAND_LOADS, PROACTIVE_LOADS, FILL_LOADS))
    misses = controller.accesses - hits
    return {
        "slots": controller.layout.slots,
        "staging": controller.staging,
        "accesses": controller.accesses,
        "hits": hits,
        "prefetch_hits": controller.prefetch_hits,
        "misses": misses,
        "misses_by_handler": session.misses_by_handler(),
        "hit_rate": hits / max(1, controller.accesses),
        "loads": demand + ahead + fill,
        "demand_loads": demand,
        "proactive_loads": ahead,
        "fill_loads": fill,
        "bytes_loaded": int(counts[LOADED_BYTES]),
    }


def timed(session: OffloadSession) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(figures of the run in seconds and bytes, a row for each pass)."""
    summary, moved = session.telemetry.summary(), session.transfer.counts()
    rows = [{"pass": number, **row} for number, row in enumerate(summary.pop("per_pass"))]
    copies = {
        "copies": moved.copies,
        "copied_bytes": {"demand": moved.demand_bytes, "ahead": moved.ahead_bytes},
        "cancelled_copies": moved.cancelled,
        "copying_s": round(moved.busy_s, 6),
    }
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in summary.items()}
    startup = {name: round(seconds, 3) for name, seconds in session.startup.items()}
    return {**rounded, **copies, "startup": startup}, rows


def check_outputs(cfg: DictConfig) -> None:
    """Refuses names of files that could not be written, before a run."""
    for name, endings in (("telemetry_out", (".parquet", ".json")), ("timeline_out", (".json",)),
                          ("profile_out", (".safetensors",)), ("trace_out", (".safetensors",))):  # fmt: skip
        path = cfg[name]
        if path is not None and Path(path).suffix not in endings:
            raise InputError(
                f"{name}: got {path}; expected a name that ends in {' or '.join(endings)}; set {name}=run{endings[0]}"
            )


def write_passes(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row a pass, as parquet or as a JSON list, whole or not at all."""
    table = pd.DataFrame(rows)
    if path.suffix == ".json":
        write_atomic(path, table.to_json(orient="records", indent=1).encode())
        return
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    write_atomic(path, buffer.getvalue())
