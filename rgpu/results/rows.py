"""Tidy result rows: one metric a row in one long parquet table; every figure and the report read it and nothing else.

The vocabulary (experiments, metrics, units, which figure reads what) is in docs/results.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rgpu.errors import InputError
from rgpu.results.provenance import write_atomic
from rgpu.results.statistics import SAMPLES, bootstrap

_TEXT, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
SCHEMA = pa.schema(
    {
        "experiment": _TEXT,  # which measurement: capacity_sweep, popularity, ...
        "model": _TEXT,
        "trace": _TEXT,  # short name; one image a trace
        "trace_tokens": _INT,
        "source": _TEXT,  # what a figure's caption says the data is
        "synthetic": _BOOL,  # routing or weights were made up
        "simulated": _BOOL,  # rests on a model of time or hardware
        "method": _TEXT,  # live | replay | counted | trained
        "policy": _TEXT,
        "kind": _TEXT,  # demand | staged | proactive | clairvoyant | bound
        "predictor": _TEXT,
        "scope": _TEXT,
        "slots": _INT,
        "staging": _INT,
        "capacity_share": _FLOAT,  # slots over experts, staging included
        "reset": _TEXT,
        "case": _TEXT,  # which arm of a figure (docs/results.md)
        "domain": _TEXT,
        "layer": _INT,
        "expert": _INT,
        "slot": _INT,
        "horizon": _INT,  # MoE layers ahead
        "width": _INT,  # experts predicted
        "lag": _INT,  # tokens back, or tokens ahead
        "offset": _INT,  # token offset, relative to the switch where there is one
        "sequence": _INT,
        "order": _INT,  # which random order of the sequences (warm runs)
        "batch": _INT,  # sequences that share a forward pass
        "machine": _TEXT,  # hardware profile of a simulated time
        "miss": _TEXT,  # how misses are served: fetch | cpu | split | zero_copy
        "x": _FLOAT,  # coordinate on an axis that no other column holds (docs/results.md says what)
        "metric": _TEXT,
        "unit": _TEXT,
        "value": _FLOAT,
        "lo": _FLOAT,
        "hi": _FLOAT,
        "numerator": _FLOAT,
        "denominator": _FLOAT,
        "count": _INT,
        "baseline": _TEXT,  # what a difference is against
        "p_value": _FLOAT,  # Holm-adjusted
        "verdict": _TEXT,
        "seed": _INT,
        "config_hash": _TEXT,
        "commit": _TEXT,
        "versions": _TEXT,
        "hardware": _TEXT,
        "date": _TEXT,
    }
)
REQUIRED = ("experiment", "trace", "source", "synthetic", "simulated", "metric", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a batch of rows has in common; makes rows as arrow tables, scalars and arrays broadcast.

    `provenance` is `rgpu.results.provenance.stamp(config)`. Example:
    `context.at(policy="lru", slots=8, capacity_share=0.25).ratio("hit_rate", hits_S, accesses_S)`.
    """

    experiment: str
    trace: str
    source: str
    trace_tokens: int
    model: str = ""
    synthetic: bool = False
    simulated: bool = False
    method: str = "replay"
    provenance: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)

    def at(self, **columns: Any) -> "Context":
        """The same context with further columns fixed (fields of the context itself may be replaced too)."""
        own = {k: v for k, v in columns.items() if k in self.__dataclass_fields__}
        rest = {k: v for k, v in columns.items() if k not in own}
        return replace(self, common={**self.common, **rest}, **own)

    def rows(self, metric: str, unit: str, value: Any, **columns: Any) -> pa.Table:
        """One row per element of the longest column given (value included)."""
        fixed = {n: getattr(self, n) for n in ("experiment", "trace", "source", "trace_tokens", "model", "method")}
        flags = {"synthetic": self.synthetic, "simulated": self.simulated}
        return table(
            {
                **self.provenance,
                **fixed,
                **flags,
                **self.common,
                **columns,
                "metric": metric,
                "unit": unit,
                "value": value,
            }
        )

    def ratio(
        self,
        metric: str,
        numerators_S: np.ndarray,
        denominators_S: np.ndarray,
        *,
        unit: str = "share",
        sequences: np.ndarray | None = None,
        keep: bool = True,
        samples: int = SAMPLES,
        seed: int = 0,
        **columns: Any,
    ) -> pa.Table:
        """One row over all sequences with its bootstrap interval and, if `keep`, one row a sequence.

        Arrays [S], or [O, S] for a warm run over O orders of the same sequences. `sequences` int [S]: their numbers.
        """
        numerators, denominators = np.asarray(numerators_S, float), np.asarray(denominators_S, float)
        found = bootstrap(numerators, denominators, samples=samples, seed=seed)
        whole = self.rows(
            metric,
            unit,
            found.estimate,
            lo=found.lo,
            hi=found.hi,
            numerator=numerators.sum(),
            denominator=denominators.sum(),
            count=numerators.shape[-1],
            **columns,
        )
        if not keep:
            return whole
        numbers = np.arange(numerators.shape[-1]) if sequences is None else np.asarray(sequences)
        orders = np.arange(len(numerators)).repeat(len(numbers)) if numerators.ndim == 2 else None
        with np.errstate(divide="ignore", invalid="ignore"):
            values = (numerators / denominators).ravel()
        each = self.rows(
            metric,
            unit,
            values,
            numerator=numerators.ravel(),
            denominator=denominators.ravel(),
            sequence=np.tile(numbers, len(values) // len(numbers)),
            order=orders,
            **columns,
        )
        return pa.concat_tables([whole, each])


def table(columns: dict[str, Any]) -> pa.Table:
    """Arrow table of `SCHEMA` from scalars and arrays of one length; NaN becomes null. Unknown: `ValueError`."""
    if unknown := sorted(set(columns) - set(SCHEMA.names)):
        raise ValueError(f"unknown result columns {unknown}; known: {SCHEMA.names}")
    length = max([len(v) for v in columns.values() if _long(v)], default=1)
    return pa.table([_column(f, columns.get(f.name), length) for f in SCHEMA], schema=SCHEMA)


def append(path: str | Path, rows: pa.Table | Iterable[pa.Table] | pd.DataFrame) -> int:
    """Append rows to a parquet file atomically (read, join, write aside, fsync, rename); returns the rows it now has.

    Column types are those of `SCHEMA`. One writer at a time. A file that is not a results table is an `InputError`.
    """
    path = Path(path)
    parts = [read_arrow(path)] if path.exists() else []
    if isinstance(rows, pd.DataFrame):
        parts.append(_conform(pa.Table.from_pandas(rows, preserve_index=False), "the rows given"))
    else:
        parts.extend([rows] if isinstance(rows, pa.Table) else rows)
    whole = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
    buffer = pa.BufferOutputStream()
    pq.write_table(whole, buffer, compression="zstd")
    write_atomic(path, buffer.getvalue().to_pybytes())
    return int(whole.num_rows)


def read(path: str | Path) -> pd.DataFrame:
    """The rows as a data frame (text as categories, nullable `Int64` integers). No or a corrupt file: `InputError`."""
    if not Path(path).is_file():
        raise InputError(
            f"cannot read rows: got no file at {path}, expected a results parquet; run a sweep or reproduce first"
        )
    return frame(read_arrow(Path(path)))


def frame(rows: pa.Table) -> pd.DataFrame:
    """Arrow rows as the data frame that figures take."""
    kinds = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return rows.to_pandas(types_mapper=kinds.get, strings_to_categorical=True)


def read_arrow(path: Path) -> pa.Table:
    """The rows as an arrow table with exactly the columns of `SCHEMA`. Corrupt file: `InputError`."""
    try:
        found = pq.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"cannot read {path.name}: got '{reason}', expected a whole parquet file; delete it and run again"
        ) from error
    return _conform(found, path.name)


def _conform(found: pa.Table, name: str) -> pa.Table:
    """`found` with exactly the columns of `SCHEMA`: absent optional ones null, so that older files stay readable."""
    if missing := [c for c in REQUIRED if c not in found.column_names]:
        raise InputError(
            f"{name} is not a results table: got no column '{missing[0]}', expected the columns of docs/results.md; "
            "make rows with rgpu sweep or rgpu reproduce"
        )
    try:
        columns = [
            found.column(f.name).cast(f.type) if f.name in found.column_names else pa.nulls(found.num_rows, f.type)
            for f in SCHEMA
        ]
    except pa.ArrowException as error:
        raise InputError(
            f"{name} is not a results table: got '{str(error)[:100]}', expected types as in docs/results.md; run again"
        ) from error
    return pa.table(columns, schema=SCHEMA)


def _long(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray | pd.Series | pa.Array) and np.ndim(value) > 0


def _column(column: pa.Field, value: Any, length: int) -> pa.Array:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return pa.nulls(length, column.type)
    if _long(value):
        array = pa.array(value, from_pandas=True)
        array = array.cast(column.type) if array.type != column.type else array
        if len(array) not in (1, length):
            raise ValueError(f"result column '{column.name}' has {len(array)} values, expected {length}")
        return array if len(array) == length else pa.repeat(array[0], length)
    scalar = value.item() if isinstance(value, np.generic) else value
    return pa.repeat(pa.scalar(scalar, column.type), length)
