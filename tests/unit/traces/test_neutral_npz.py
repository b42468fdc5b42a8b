"""The neutral `.npz`: what it holds, and what is said when it is broken."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.errors import TraceError
from rgpu.traces.storage import load_trace

SHARED = Path(os.environ.get("RGPU_SHARED", Path(__file__).parents[4] / "shared")) / "traces"


def write(folder: Path, ids: np.ndarray, side: dict[str, Any] | None, **arrays: Any) -> Path:
    path = folder / "t.npz"
    count = len(ids)
    np.savez(
        path, expert_ids=ids, seq_offsets=np.array([0, 2, count]), positions=np.arange(count, dtype=np.int32), **arrays
    )
    if side is not None:
        path.with_suffix(".json").write_text(json.dumps(side))
    return path


IDS = np.array([[[0, 1], [2, 3]], [[1, 0], [-1, -1]], [[3, 2], [1, 2]]], np.int16)
SIDE = {
    "model": "m", "num_experts": 4, "top_k": 2, "moe_layer_ids": [3, 4], "phase": "decode only (greedy)",
    "seq_meta": [{"dataset": "d", "category": "c", "row_index": 7}, {"dataset": "d", "row_index": 8}],
}  # fmt: skip


def test_reads_ids_phase_and_sequences(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path, IDS, SIDE, weights=np.ones(IDS.shape, np.float32)))
    assert np.array_equal(trace.expert_ids, np.where(IDS < 0, 255, IDS)) and trace.expert_ids.dtype == np.uint8
    assert trace.phase is not None and trace.phase.tolist() == [1, 1, 1]
    assert trace.passes.tolist() == [0, 1, 2] and trace.header.layer_ids == [3, 4]
    assert trace.weights is not None and trace.weights[1, 1].tolist() == [0, 0] and trace.weights.dtype == np.float16
    first = {"kind": "generation", "dataset": "d", "category": "c", "row_index": 7, "domain": "d", "document": "d/7"}
    assert trace.header.sequences[0] == first and trace.header.provenance["prefill"] is False


@pytest.mark.parametrize(
    ("side", "said"),
    [
        (None, "got no sidecar t.json"),
        ({"model": "m"}, "no 'num_experts'"),
        (SIDE | {"num_experts": 3}, "got ids -1 to 3; expected -1 to 2"),
        (SIDE | {"sha256": "00"}, "checksum mismatch"),
        (SIDE | {"top_k": 3}, "expected top_k 3"),
        (SIDE | {"moe_layer_ids": [1]}, "expected 1, as layer_ids says"),
        (SIDE | {"moe_layer_ids": "x"}, "layer_ids"),
        (SIDE | {"seq_meta": [1]}, "'seq_meta' that is not a list of objects"),
        (SIDE | {"seq_meta": [{}]}, "got 1 sequences; expected 2"),
    ],
)
def test_sidecar_faults(tmp_path: Path, side: dict[str, Any] | None, said: str) -> None:
    with pytest.raises(TraceError) as caught:
        load_trace(write(tmp_path, IDS, side))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 30, 300])
def test_corrupt_archive(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path, IDS, SIDE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TraceError, match="corrupt or truncated npz"):
        load_trace(path)


def test_array_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, expert_ids=IDS)
    with pytest.raises(TraceError, match="no array 'seq_offsets'"):
        load_trace(path)


def test_real_trace() -> None:
    path = SHARED / "gpt-oss-20b_decode_mixedqa_w.npz"
    if not path.exists():
        pytest.skip(f"no {path}; set RGPU_SHARED")
    trace = load_trace(path)
    assert (trace.tokens, trace.layers, trace.header.top_k, trace.sequences) == (57359, 24, 4, 195)
    assert trace.header.expert_bytes == [13_236_480] * 24 and trace.header.quantisation == "mxfp4"
