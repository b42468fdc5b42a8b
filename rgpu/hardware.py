"""`HardwareProfile`: what a machine can do, each number with its source (a datasheet, a measurement, an assumption).

Units are in the names. A profile is a yaml of `conf/hardware` or one that `rgpu bench link` wrote.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from rgpu.errors import InputError
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.sourced import numbers

HOST = ("cpu_gb_per_s", "cpu_gflops", "cpu_call_us", "host_gb_per_s", "disk_gb_per_s", "disk_latency_us", "ram_gb")
GPU = ("gpu_gb_per_s", "gpu_tflops", "launch_us", "link_gb_per_s", "link_latency_us", "link_chunk_kib",
       "zero_copy_gb_per_s", "sync_us", "vram_gb")  # fmt: skip
RATES = ("cpu_gb_per_s", "cpu_gflops", "host_gb_per_s", "disk_gb_per_s", "gpu_gb_per_s", "gpu_tflops", "link_gb_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """A machine. Without a GPU the GPU's entries are None: then it computes on the CPU and loads come from the disk.

    Effective rates: `gpu_gb_per_s` memory, `gpu_tflops` of the kernels (prefill), `launch_us` fixed cost a layer,
    `link_gb_per_s` host to GPU with `link_latency_us` a copy and `link_chunk_kib` between two points where a copy can be
    interrupted, `zero_copy_gb_per_s` kernels reading host memory, `sync_us` router read-back a layer, `cpu_gb_per_s` and
    `cpu_gflops` of expert compute with `cpu_call_us` a call, `host_gb_per_s` DRAM that CPU and link share, disk reads."""

    name: str
    cpu_gb_per_s: float
    cpu_gflops: float
    cpu_call_us: float
    host_gb_per_s: float
    disk_gb_per_s: float
    disk_latency_us: float
    ram_gb: float
    gpu_gb_per_s: float | None = None
    gpu_tflops: float | None = None
    launch_us: float | None = None
    link_gb_per_s: float | None = None
    link_latency_us: float | None = None
    link_chunk_kib: float | None = None
    zero_copy_gb_per_s: float | None = None
    sync_us: float | None = None
    vram_gb: float | None = None
    sources: Mapping[str, str]

    @property
    def has_gpu(self) -> bool:
        return self.gpu_gb_per_s is not None

    def machine(self) -> Machine:
        """The same for the virtual clock."""
        if not self.has_gpu:
            return Machine(
                name=self.name, bytes_per_s=1e9 * self.cpu_gb_per_s, flop_per_s=1e9 * self.cpu_gflops,
                launch_s=1e-6 * self.cpu_call_us, link_bytes_per_s=1e9 * self.disk_gb_per_s,
                link_latency_s=1e-6 * self.disk_latency_us, link_chunk_bytes=0.0,
            )  # fmt: skip
        gpu = {name: float(getattr(self, name)) for name in GPU}
        return Machine(
            name=self.name, bytes_per_s=1e9 * gpu["gpu_gb_per_s"], flop_per_s=1e12 * gpu["gpu_tflops"],
            launch_s=1e-6 * gpu["launch_us"], link_bytes_per_s=1e9 * gpu["link_gb_per_s"],
            link_latency_s=1e-6 * gpu["link_latency_us"], link_chunk_bytes=1024 * gpu["link_chunk_kib"],
            zero_copy_bytes_per_s=1e9 * gpu["zero_copy_gb_per_s"], sync_s=1e-6 * gpu["sync_us"],
            cpu_bytes_per_s=1e9 * self.cpu_gb_per_s, cpu_flop_per_s=1e9 * self.cpu_gflops,
            cpu_call_s=1e-6 * self.cpu_call_us, host_bytes_per_s=1e9 * self.host_gb_per_s,
            disk_bytes_per_s=1e9 * self.disk_gb_per_s, disk_latency_s=1e-6 * self.disk_latency_us,
        )  # fmt: skip

    def to_yaml(self) -> str:
        """Text that `profile_of` reads back."""
        lines = [f"name: {json.dumps(self.name)}"]
        for name in (*GPU, *HOST):
            if (value := getattr(self, name)) is not None:
                lines.append(f"{name}: {{value: {float(f'{value:.6g}')!r}, source: {json.dumps(self.sources[name])}}}")
        return "\n".join(lines) + "\n"


def profile_of(data: Mapping[str, Any], what: str = "hardware") -> HardwareProfile:
    """A checked profile from the entries of its yaml. What is missing, unknown or out of range: `InputError`."""
    if not isinstance(data, Mapping) or not data.get("name"):
        raise InputError(f"{what}: got no name; expected a profile as in conf/hardware")
    name = str(data["name"])
    given = {k: v for k, v in data.items() if k != "name"}
    with_gpu = any(given.get(k) is not None for k in GPU)
    values, sources = numbers(given, (*HOST, *(GPU if with_gpu else ())), () if with_gpu else GPU, f"{what} {name}")
    for rate in RATES:
        if values.get(rate, 1.0) <= 0:
            raise InputError(f"{what} {name}: got {rate}={values[rate]:g}; expected a number above 0")
    known = {f.name for f in fields(HardwareProfile)}
    return HardwareProfile(
        name=name, sources=MappingProxyType(sources), **{k: v for k, v in values.items() if k in known}
    )
