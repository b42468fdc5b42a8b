"""Training where the hidden states do not fit into memory: a limit of private memory that a trace in memory runs into."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rgpu.traces.storage import TraceWriter
from rgpu.traces.trace import TraceHeader
from tests.predicting import LAYERS, learnable_trace

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20
SCRIPT = """
import json, resource, sys
import torch
from rgpu.predictors import training_rows
from rgpu.predictors.linear import Linear
from rgpu.predictors.mlp import Mlp
from rgpu.traces import validate
from rgpu.traces.storage import load_trace

path, small, room = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
training_rows.READ_BYTES = validate._FINITE_BYTES = 1 << 20


def fit(path, stream):
    trace = load_trace(path, stream=stream)
    linear = Linear(epochs=1, kept_gib=0).fit(trace)
    mlp = Mlp(width=8, epochs=1, optimiser="sgd", batch=512).fit(trace)
    n, layers, size = trace.hidden.shape
    return 2 * n * layers * size, len(linear.curve_) + len(mlp.curve_)


fit(small, True)  # whatever is allocated once is there
lines = open("/proc/self/status").read().splitlines()
used = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
told = {}
for stream in (True, False):
    try:
        told[str(stream)] = fit(path, stream)
    except (MemoryError, RuntimeError) as error:
        told[str(stream)] = type(error).__name__
print(json.dumps(told))
"""


def write(path: Path, copies: int, size: int) -> None:
    """Sequences of a small trace again and again, their hidden states widened to `size` by repetition."""
    made = learnable_trace()
    header = TraceHeader("toy", made.header.num_experts, made.header.top_k, list(range(LAYERS)))
    header.sequences = [{"document": f"d{s}"} for s in range(copies * made.sequences)]
    owner_N = (made.seq_offsets[1:, None] <= range(made.tokens)).sum(0)
    assert made.hidden is not None
    hidden = made.hidden.repeat(size // made.hidden.shape[2], axis=2)
    with TraceWriter(path, header, shard_bytes=8 * MIB) as writer:
        for i in range(copies):
            passes = made.passes + i * (int(made.passes.max()) + 1)
            numbers = owner_N + i * made.sequences
            writer.append(numbers, made.expert_ids, made.positions, passes, phase=made.phase, hidden=hidden)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what is mapped privately on Linux alone")
def test_training_needs_less_memory_than_the_trace_has(tmp_path: Path) -> None:
    room = 40 * MIB
    write(tmp_path / "large.safetensors", copies=220, size=240)
    write(tmp_path / "small.safetensors", copies=4, size=240)
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("large", "small")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths, str(room)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    nbytes, epochs = told["True"]
    assert nbytes > 1.8 * room and epochs == 4
    assert told["False"] in ("MemoryError", "_ArrayMemoryError", "RuntimeError")
