"""The streaming writer: same file for any cut into appends, nothing left after an interruption."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rgpu.errors import TraceError
from rgpu.traces import encode
from rgpu.traces.storage import TraceWriter, load_trace
from rgpu.traces.trace import Trace, TraceHeader


def write(path: Path, trace: Trace, sequence_N: np.ndarray, order: np.ndarray, cuts: list[int]) -> Path:
    """Append the trace's rows in `order`, cut at `cuts`."""
    header = TraceHeader(**{**trace.header.to_json(), "checksum": ""})
    names = [name for name in trace.arrays() if name != "seq_offsets"]
    with TraceWriter(path, header, shard_bytes=150) as writer:
        for rows in np.split(order, cuts):
            writer.append(sequence_N[rows], **{name: getattr(trace, name)[rows] for name in names})
    return path


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_do_not_depend_on_the_cut(tmp_path: Path, make_trace: Callable[..., Trace], data: st.DataObject) -> None:
    lengths = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    trace = make_trace(lengths=lengths)
    sequence_N = np.repeat(np.arange(len(lengths)), lengths)
    order = np.argsort(trace.positions, kind="stable")  # as batched decoding would bring them
    trace.passes = trace.positions.copy()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=4)))
    whole = write(tmp_path / "a.safetensors", trace, sequence_N, order, [])
    files = {p.name.replace("a.", ""): p.read_bytes().replace(b'"a.', b'"b.') for p in tmp_path.glob("a.*")}
    chunk, encode.CHUNK_BYTES = encode.CHUNK_BYTES, 64
    try:
        write(tmp_path / "b.safetensors", trace, sequence_N, order, cuts)
    finally:
        encode.CHUNK_BYTES = chunk
    assert {p.name.replace("b.", ""): p.read_bytes() for p in tmp_path.glob("b.*")} == files
    loaded = load_trace(whole)
    assert all(np.array_equal(array, loaded.arrays()[name]) for name, array in trace.arrays().items())
    for file in tmp_path.iterdir():
        file.unlink()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_leaves_no_file(
    tmp_path: Path, make_trace: Callable[..., Trace], error: type[BaseException]
) -> None:
    trace = make_trace()
    arrays = {n: a for n, a in trace.arrays().items() if n != "seq_offsets"}
    with pytest.raises(error), TraceWriter(tmp_path / "a.safetensors", trace.header) as writer:
        writer.append(np.zeros(13, np.int64), **arrays)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_skipped_sequences_and_missing_ids(tmp_path: Path) -> None:
    header = TraceHeader(model="m", num_experts=300, top_k=2, layer_ids=[0])
    header.sequences = [{"domain": "a"}, {"domain": "b"}, {"domain": "c"}]
    with TraceWriter(tmp_path / "a.safetensors", header) as writer:
        ids = np.array([[[299, -1]], [[3, 4]]])
        writer.append(np.array([2, 0]), ids, np.array([0, 0]), np.array([0, 0]))
    trace = load_trace(tmp_path / "a.safetensors")
    assert [s["domain"] for s in trace.header.sequences] == ["a", "c"]
    assert trace.expert_ids.tolist() == [[[3, 4]], [[299, 65535]]]


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    header = TraceHeader(model="m", num_experts=8, top_k=1, layer_ids=[0])
    row = {"positions": np.zeros(1), "passes": np.zeros(1)}
    with TraceWriter(tmp_path / "a.safetensors", header) as writer:
        with pytest.raises(TraceError, match="got ids from 8 to 8; expected -1 to 7"):
            writer.append(np.zeros(1), np.full((1, 1, 1), 8), **row)
        with pytest.raises(TraceError, match="'weights': got NaN"):
            writer.append(np.zeros(1), np.zeros((1, 1, 1), int), **row, weights=np.full((1, 1, 1), np.nan))
        with pytest.raises(TraceError, match="'speed'"):
            writer.append(np.zeros(1), np.zeros((1, 1, 1), int), **row, speed=np.zeros(1))
        writer.append(np.zeros(1), np.zeros((1, 1, 1), int), **row)
        with pytest.raises(TraceError, match="expected those of before"):
            writer.append(np.zeros(1), np.zeros((1, 1, 1), int), **row, phase=np.zeros(1))
    assert load_trace(tmp_path / "a.safetensors").tokens == 1


def test_nothing_recorded(tmp_path: Path) -> None:
    with (
        pytest.raises(TraceError, match="got no token"),
        TraceWriter(tmp_path / "a.safetensors", TraceHeader("m", 8, 1, [0])),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
