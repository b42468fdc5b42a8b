"""Rows: schema, appending whole or not at all, reading what is not a results table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgpu.errors import InputError
from rgpu.results import provenance
from rgpu.results.rows import SCHEMA, append, read, table
from tests.result_rows import CONTEXT, everything


def test_append_adds_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.parquet"
    first = CONTEXT.rows("hit_rate", "share", 0.5, policy="lru", slots=8)
    assert append(path, first) == 1
    assert append(path, [first, first]) == 3
    found = read(path)
    assert list(found.columns) == SCHEMA.names
    assert found["slots"].tolist() == [8, 8, 8]
    assert found["layer"].isna().all()
    assert found["synthetic"].all()
    assert [p.name for p in path.parent.iterdir()] == ["rows.parquet"]


def test_a_frame_survives_the_round_trip(tmp_path: Path) -> None:
    append(tmp_path / "a.parquet", everything())
    first = read(tmp_path / "a.parquet")
    append(tmp_path / "b.parquet", first)
    pd.testing.assert_frame_equal(first, read(tmp_path / "b.parquet"), check_categorical=False)


def test_a_failed_write_leaves_the_old_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    row = CONTEXT.rows("hit_rate", "share", 0.5)
    append(path, row)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(provenance.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        append(path, row)
    monkeypatch.undo()
    assert len(read(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", b"hello" * 100])
def test_a_corrupt_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.parquet.*expected") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        append(path, CONTEXT.rows("hit_rate", "share", 0.5))
    assert path.read_bytes() == content


def test_a_truncated_file_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    append(path, everything())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError):
        read(path)


def test_another_parquet_is_not_a_results_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no column 'experiment'"):
        read(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no file"):
        read(tmp_path / "absent.parquet")


def test_older_rows_without_newer_columns_stay_readable(tmp_path: Path) -> None:
    row = CONTEXT.rows("hit_rate", "share", 0.5)
    pq.write_table(row.drop_columns(["verdict", "kind"]), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet")["verdict"].isna().all()


def test_columns_are_checked() -> None:
    with pytest.raises(ValueError, match="colour"):
        table({"colour": "red"})
    with pytest.raises(ValueError, match="slots"):
        table({"value": [1.0, 2.0, 3.0], "slots": [1, 2]})


def test_ratio_keeps_what_a_bootstrap_needs() -> None:
    hits, accesses = np.array([1, 2, 3]), np.array([4, 4, 4])
    found = CONTEXT.ratio("hit_rate", hits, accesses, sequences=np.array([5, 6, 9])).to_pandas()
    assert found["value"].tolist() == [0.5, 0.25, 0.5, 0.75]
    assert found["sequence"].tolist()[1:] == [5, 6, 9]
    assert found["lo"][0] < 0.5 < found["hi"][0]
    assert found["numerator"].tolist() == [6, 1, 2, 3]
    warm = CONTEXT.ratio("hit_rate", np.stack([hits, hits]), np.stack([accesses, accesses])).to_pandas()
    assert warm["order"].tolist()[1:] == [0, 0, 0, 1, 1, 1]
    assert CONTEXT.ratio("hit_rate", hits, accesses, keep=False).num_rows == 1
