"""Stages of a long run: what one has finished is kept on disk until the whole run is, so that a killed run continues."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from rgpu.results.provenance import write_atomic
from rgpu.results.rows import append, read_arrow


class Stages:
    """Keeps finished stages in a folder named after what identifies the run; `clear` when all is done."""

    def __init__(self, out: Path, identity: str) -> None:
        self.folder = out / f".parts-{identity}"

    def rows(self, name: str, make: Callable[[], list[pa.Table]]) -> pa.Table:
        """Rows of a stage: kept ones, or made now and kept."""
        kept = self.folder / f"{name}.parquet"
        if not kept.exists():
            append(kept, make())
        return read_arrow(kept)

    def document(self, name: str, make: Callable[[], Any]) -> Any:
        """JSON data of a stage: kept, or made now and kept."""
        kept = self.folder / f"{name}.json"
        if not kept.exists():
            write_atomic(kept, json.dumps(make()).encode())
        return json.loads(kept.read_text())

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
