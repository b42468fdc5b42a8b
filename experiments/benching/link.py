"""`rgpu bench link`: what this machine's memory, CPU, disk and (where there is one) GPU do, as a hardware profile.

Every number carries how and when it was measured; what cannot be measured is marked as an assumption.
"""

import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.benching import transfers
from rgpu.experiments.benching.cases import calls, make_pool, model_of
from rgpu.experiments.benching.roofline import measure_roof
from rgpu.experiments.benching.running import most_bytes, working_set
from rgpu.experiments.benching.timing import call_seconds
from rgpu.hardware import HardwareProfile, profile_of
from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.kernels.shapes import ModelShape
from rgpu.results.provenance import manifest, write_atomic

MIB = 2**20
COPY_BYTES, BLOCK = 256 * MIB, 4096  # bytes of a large copy; alignment of direct reads
SMALL_READS = 200
LAUNCHES = 12  # kernels of a layer without a graph
CPU = torch.device("cpu")
TINY = ModelShape("tiny", 256, 128, 8, 1)  # its call is nearly all overhead
Found = dict[str, tuple[float, str]]  # entry of the profile -> value, how it was measured


@dataclass(frozen=True)
class Settings:
    """`format` and `model`: whose experts the CPU computes; `disk_bytes` of a temporary file in `folder`."""

    model: str
    format: str
    threads: int
    repeats: int
    folder: Path
    disk_bytes: int
    seed: int = 0


def measure_profile(name: str, settings: Settings) -> tuple[HardwareProfile, dict[str, Any]]:
    """(the profile of this machine, figures beside it)."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise InputError(f"link.name: got {name!r}; expected letters, digits and any of _ . -, as it names a file")
    if settings.disk_bytes < MIB or settings.threads < 1 or settings.repeats < 1:
        raise InputError(
            "bench link: got no data to read, threads or repeats; expected disk_mib, threads, repeats from 1"
        )
    torch.set_num_threads(settings.threads)
    facts = manifest({})
    busy = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""  # wall times: it matters
    there = f"measured {datetime.now(UTC).date()} on {facts['cpu']}, {settings.threads} of {facts['cores']} cores{busy}"
    found, beside = host_numbers(settings)
    found |= disk_numbers(settings)
    if torch.cuda.is_available():
        device = torch.device("cuda")
        found |= gpu_numbers(device)
        there += f", {torch.cuda.get_device_name(device)}"
        beside["link"] = "measured, between host memory and the GPU"
    else:
        beside["link"] = "not measured: there is no GPU here; the CPU computes and the disk is what loads travel over"
    data: dict[str, Any] = {"name": name}
    for key, (value, how) in found.items():
        source = how if how.startswith("assumption") else f"{there}: {how}"
        data[key] = {"value": float(f"{value:.6g}"), "source": source}
    return profile_of(data), beside | {"threads": settings.threads, "cores": facts["cores"]}


def write_profile(profile: HardwareProfile, out: Path) -> Path:
    """Writes `<out>/hardware/<name>.yaml`, where --config-dir=<out> finds it, and reads it back."""
    path = out / "hardware" / f"{profile.name}.yaml"
    write_atomic(path, f"# written by rgpu bench link\n{profile.to_yaml()}".encode())
    data: Any = OmegaConf.to_container(OmegaConf.load(path))
    assert profile_of(data) == profile, "a profile that was written reads back as the same"
    return path


def host_numbers(settings: Settings) -> tuple[Found, dict[str, Any]]:
    """Memory, matrix product and experts on the CPU; beside them the speed of a plain copy."""
    roof = measure_roof(CPU, "wall")
    source, target = torch.ones(COPY_BYTES, dtype=torch.uint8), torch.empty(COPY_BYTES, dtype=torch.uint8)
    copy = COPY_BYTES / min(call_seconds(lambda: target.copy_(source), CPU, "wall", settings.repeats + 2))
    gb_per_s = expert_bytes_per_s(settings) / 1e9
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found: Found = {
        "host_gb_per_s": (roof.gb_per_s, "fastest of reading and copying 256 MiB"),
        "cpu_gb_per_s": (gb_per_s, f"stored bytes of {settings.model} {settings.format} experts, one token, median"),
        "cpu_gflops": (roof.gflops, "float32 product of 1024 x 1024 matrices"),
        "cpu_call_us": (1e6 * call_overhead(settings), "median call on one expert of 256 x 128"),
        "ram_gb": (pages / 1e9, "physical memory"),
    }
    return found, {"memcpy_gb_per_s": copy / 1e9}


def expert_bytes_per_s(settings: Settings) -> float:
    """Stored bytes a second of `CpuCompute` on one token's experts, each call on others."""
    pool = make_pool(model_of(settings.model), settings.format, CPU, working_set(CPU), most_bytes(CPU), settings.seed)
    run = CpuCompute(pool.layout, pool.gate, settings.threads)
    rounds = list(calls(pool, 1, 8, settings.seed, CPU))
    took = []
    for n in range(8 * (settings.repeats + 1)):
        routed = rounds[n % 8]
        began = time.perf_counter()
        run(routed.x_TD, pool.slots_SB, routed.slot_TK, routed.weight_TK)
        took.append((time.perf_counter() - began) / (routed.distinct * pool.layout.payload_bytes))
    return float(1 / np.median(took[8:]))  # the first round compiles


def call_overhead(settings: Settings) -> float:
    """Seconds of a call that computes next to nothing."""
    pool = make_pool(TINY, settings.format, CPU, 1, 1 << 30, settings.seed)
    run = CpuCompute(pool.layout, pool.gate, settings.threads)
    routed = next(iter(calls(pool, 1, 1, settings.seed, CPU)))
    took = call_seconds(
        lambda: run(routed.x_TD, pool.slots_SB, routed.slot_TK, routed.weight_TK), CPU, "wall", 20 * settings.repeats
    )
    return float(np.median(took))


def disk_numbers(settings: Settings) -> Found:
    """Sequential and small random reads of a temporary file, past the page cache where the system allows it."""
    with temporary_file(settings.folder, settings.disk_bytes) as path:
        reader, how = opened(path)
        try:
            size = min(8 * MIB, settings.disk_bytes)
            began = time.perf_counter()
            for at in range(0, settings.disk_bytes - size + 1, size):
                read_at(reader, at, size)
            speed = settings.disk_bytes // size * size / (time.perf_counter() - began)
            rng = np.random.default_rng(settings.seed)
            took = []
            for at in rng.integers(0, settings.disk_bytes // BLOCK, SMALL_READS) * BLOCK:
                began = time.perf_counter()
                read_at(reader, int(at), BLOCK)
                took.append(time.perf_counter() - began)
        finally:
            os.close(reader)
    return {
        "disk_gb_per_s": (speed / 1e9, f"reading a file of {settings.disk_bytes // MIB} MiB in order, {how}"),
        "disk_latency_us": (1e6 * float(np.median(took)), f"reading 4 KiB at random places of it, {how}"),
    }


@contextmanager
def temporary_file(folder: Path, nbytes: int) -> Iterator[Path]:
    """A file of random bytes, on the disk and not only in memory, removed afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".rgpu-bench-{os.getpid()}.tmp"
    block = np.random.default_rng(0).integers(0, 256, MIB, dtype=np.uint8).tobytes()
    try:
        with path.open("wb") as out:
            for _ in range(-(-nbytes // MIB)):
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        yield path
    except OSError as error:
        raise InputError(
            f"bench link: cannot use {path.name}: got '{error.strerror}', expected a folder with {nbytes // MIB} MiB free; "
            "set out or disk_mib"
        ) from error
    finally:
        path.unlink(missing_ok=True)


def opened(path: Path) -> tuple[int, str]:
    """(file descriptor, how its reads are kept out of the page cache)."""
    if hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECT), "direct reads past the page cache"
        except OSError:
            pass  # a file system without direct reads
    reader = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
        return reader, "buffered reads after advice to drop the file from the page cache: may still be cached"
    return reader, "buffered reads: from the page cache, not from the disk"


def read_at(reader: int, at: int, nbytes: int) -> None:
    """Reads into page-aligned memory, which direct reads need."""
    with mmap.mmap(-1, nbytes) as buffer:
        os.preadv(reader, [buffer], at)


def launch_of(kernel_s: float) -> tuple[float, str]:
    """The fixed cost of a layer in microseconds: nobody measured a layer, only a small kernel."""
    how = f"assumption: {LAUNCHES} kernels a layer without a graph, each the {1e6 * kernel_s:.3g} us of a small torch kernel"
    return 1e6 * LAUNCHES * kernel_s, f"{how} measured here"


def gpu_numbers(device: torch.device) -> Found:
    """Memory, matrix product, copies from pinned memory, kernels that read it, a synchronising read-back, a launch."""
    roof = measure_roof(device, "device")
    rows = {(row["way"], row["mib"]): row for row in transfers.measure(device)}
    large, gathered = rows["memcpy_to_device", 16], rows["gather_from_host", 16]
    small, there = torch.zeros(64, pin_memory=True), torch.zeros(64, device=device)
    latency = np.median(call_seconds(lambda: there.copy_(small, non_blocking=True), device, "device", 200))
    began, synced = time.perf_counter(), 200
    for _ in range(synced):
        there.cpu()
    sync = (time.perf_counter() - began) / synced
    began, launched = time.perf_counter(), 1000
    for _ in range(launched):
        there.add_(1)
    torch.cuda.synchronize(device)
    launch = (time.perf_counter() - began) / launched
    return {
        "gpu_gb_per_s": (roof.gb_per_s, "fastest of reading and copying device memory"),
        "gpu_tflops": (roof.gflops / 1e3, "bfloat16 product of 8192 x 8192 matrices"),
        "launch_us": launch_of(launch),
        "link_gb_per_s": (large["gb_per_s_p50"], "copies of 16 MiB from pinned memory, median"),
        "link_latency_us": (1e6 * float(latency), "a copy of 256 bytes from pinned memory, median"),
        "link_chunk_kib": (1024, "assumption: size at which a copy can give way"),
        "zero_copy_gb_per_s": (gathered["gb_per_s_p50"], "the gather kernel reading 16 MiB of pinned memory, median"),
        "sync_us": (1e6 * sync, "reading 256 bytes back, mean"),
        "vram_gb": (torch.cuda.get_device_properties(device).total_memory / 1e9, "device memory"),
    }
