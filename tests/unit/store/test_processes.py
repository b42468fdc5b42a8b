"""Two processes at once: both read one store, both convert one checkpoint."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rgpu.store.convert import StoreForm, convert, source_hash
from rgpu.store.header import read_header
from tests.unit.store.files import write_store

BEGIN = """
    import hashlib, json, sys
    from pathlib import Path
    from rgpu.store.convert import StoreForm, open_store
    from rgpu.store.tiers import open_source
    from rgpu.memory.slot_pool import SlotPool
    from rgpu.transfer.host import HostTransfer
    from rgpu.types import ExpertKey

    def digest(source):
        pool, sums = SlotPool(source.layout, 3), hashlib.sha256()
        engine = HostTransfer(source, [pool], threads=2)
        for i in range(len(source.layer_ids) * source.experts):
            engine.submit(ExpertKey(*divmod(i, source.experts)), 0, i % 3, ahead=i % 2 == 0)
            engine.wait(0, i % 3)
            sums.update(pool.buffer[i % 3, : source.layout.nbytes].numpy().tobytes())
        engine.close()
        return sums.hexdigest()

    print("ready", flush=True)
    sys.stdin.readline()
    folder = Path(sys.argv[1])
"""
READ = 'print(json.dumps([digest(open_source(folder / "x", kind, checked=True)) for kind in ("disk", "direct") * 5]))'
CONVERT = 'print(json.dumps([digest(open_store(folder / "m", StoreForm(), "disk", folder / "cache"))]))'


def both(folder: Path, script: str) -> list[str]:
    """What two processes print that do the same from the same moment on."""
    code = textwrap.dedent(BEGIN) + script
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0]
    return printed


@pytest.mark.slow
def test_two_engines_read_one_store(tmp_path: Path) -> None:
    write_store(tmp_path / "x")
    first, second = (json.loads(printed) for printed in both(tmp_path, READ))
    assert first == second and len(set(first)) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.crc.npz"]


@pytest.mark.slow
def test_two_processes_convert_one_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "m").mkdir()
    stem = "model.layers.{}.mlp.experts"
    tensors = {f"{stem.format(layer)}.gate_up_proj": torch.randn(8, 256, 64) for layer in range(4)}
    tensors |= {f"{stem.format(layer)}.down_proj": torch.randn(8, 64, 128) for layer in range(4)}
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    first, second = both(tmp_path, CONVERT)
    assert first == second
    found = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.name for path in found] == ["experts.rgpu"]
    read_header(found[0])
    convert(tmp_path / "m", tmp_path / "alone", StoreForm(), source_hash(tmp_path / "m"))
    assert found[0].read_bytes() == (tmp_path / "alone").read_bytes()
