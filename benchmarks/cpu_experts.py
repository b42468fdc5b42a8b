"""How fast one expert is on one core, by storage format; appends dated rows to benchmarks/results/cpu_experts.jsonl.

    python benchmarks/cpu_experts.py [--formats int4,mxfp4] [--shapes qwen3_30b_a3b] [--repeats 5]

Experts are cycled so that at least 64 MB are touched between two uses of one: weights come from memory, not from a cache.
Providers take turns within a repeat; a sample is one call. Time is the thread's CPU time (everything runs in one), so that
waiting for a busy core does not count; memory shared with others still does, which is why `best`, the fastest sample, is
given beside the percentiles. GB/s count the bytes that the provider keeps stored.

`rgpu` is `CpuCompute`, called with one expert; `rgpu_top_8` calls it with eight experts at once, as a layer does.
`torch_dequantise` is `TorchCompute`, which unpacks to float32 each time. `torch_bf16` multiplies unquantised bfloat16
weights. `torch_int4pack` is torch's packed int4 product with bfloat16 activations, packed outside of the timing
(`pack_ms`: what packing one expert from unpacked codes takes). `memory_read` sums 64 MB of float32.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear

from rgpu.errors import InputError
from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.kernels.compute_torch import TorchCompute
from rgpu.quant.formats import FORMATS
from rgpu.quant.gates import apply_gate
from rgpu.quant.int4 import Int4
from rgpu.quant.layout import SlotLayout
from rgpu.results.provenance import stamp
from rgpu.types import Gate

RESULTS = Path(__file__).parent / "results" / "cpu_experts.jsonl"
SHAPES = {"qwen3_30b_a3b": (768, 2048), "gpt_oss": (2880, 2880)}  # expert width, hidden size
ROWS = (1, 4, 16)
TOUCHED = 64 * 2**20  # bytes between two uses of an expert
SLOW = 1  # experts a repeat of a provider that takes tens of milliseconds and more


@dataclass(frozen=True)
class Provider:
    """A way to compute expert `e` of `experts`; `nbytes` is what it stores of one, `at_once` how many a call computes."""

    name: str
    nbytes: int
    experts: int
    run: Callable[[int], object]
    at_once: int = 1
    samples: int | None = None


def slots_of(layout: SlotLayout) -> torch.Tensor:
    """uint8 [S, stride]: as many copies of a random expert as make up `TOUCHED` bytes."""
    count = max(8, -(-TOUCHED // layout.stride))
    slots = torch.zeros(count, layout.stride, dtype=torch.uint8)
    for name, array in layout.views(slots[0]).items():
        if name.endswith(".q") and array.dtype == torch.int16 or name.endswith(".high"):
            array.copy_(torch.randint(0, 1 << 15, array.shape) & 0x7777)  # no NaN among e4m3 codes
        elif array.dtype.is_floating_point:
            array.copy_(0.01 * torch.randn(array.shape))
        else:
            array.fill_(118 if layout.format.name == "mxfp4" else 3)
    slots[1:] = slots[0]
    return slots


def stored(layout: SlotLayout, x: torch.Tensor) -> list[Provider]:
    """Providers that read slots."""
    slots, gate, rows = slots_of(layout), Gate(), len(x)
    count, nbytes, ones = len(slots), layout.payload_bytes, torch.ones(rows, 1)
    fast, slow = CpuCompute(layout, gate), TorchCompute(layout, gate)
    index = [torch.full((rows, 1), e, dtype=torch.int32) for e in range(count)]
    found = [
        Provider("rgpu", nbytes, count, lambda e: fast(x, slots, index[e], ones)),
        Provider("torch_dequantise", nbytes, count, lambda e: slow(x, slots, index[e], ones), samples=SLOW),
    ]
    if rows == 1:
        some = [torch.arange(e, e + 8, dtype=torch.int32)[None] % count for e in range(count)]
        eight = torch.full((1, 8), 0.125)
        found.append(Provider("rgpu_top_8", nbytes, count, lambda e: fast(x, slots, some[e], eight), at_once=8))
    return found


def plain_bf16(inner: int, hidden: int, x: torch.Tensor) -> Provider:
    """Unquantised weights."""
    count = max(2, -(-TOUCHED // (6 * inner * hidden)))
    up = [(torch.randn(2 * inner, hidden) / 50).bfloat16() for _ in range(count)]
    down = [(torch.randn(hidden, inner) / 50).bfloat16() for _ in range(count)]
    few = x.bfloat16()

    def run(e: int) -> torch.Tensor:
        both = linear(few, up[e])
        return linear(apply_gate(Gate(), both[:, :inner], both[:, inner:]), down[e])

    return Provider("torch_bf16", 6 * inner * hidden, count, run, samples=4 * SLOW)


def packed_int4(inner: int, hidden: int, group: int, x: torch.Tensor) -> tuple[Provider, float]:
    """Torch's packed product, and the milliseconds that packing one expert took (the fastest of three)."""
    codes = [torch.randint(0, 16, shape, dtype=torch.int32) for shape in ((2 * inner, hidden), (hidden, inner))]
    spent = []
    for _ in range(3):
        began = time.thread_time()
        packed = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(one, 2) for one in codes]
        spent.append(1e3 * (time.thread_time() - began))
    scales = [(torch.rand(one.shape[1] // group, one.shape[0], 2) / 50).bfloat16() for one in codes]
    nbytes = sum(one.nbytes for one in packed) + sum(one.nbytes // 2 for one in scales)  # symmetric: scales alone
    count = max(2, -(-TOUCHED // nbytes))
    experts = [([one.clone() for one in packed], [one.clone() for one in scales]) for _ in range(count)]
    few = x.bfloat16()

    def run(e: int) -> torch.Tensor:
        (up, down), (up_scale, down_scale) = experts[e]
        both = torch.ops.aten._weight_int4pack_mm_for_cpu(few, up, group, up_scale)
        h = apply_gate(Gate(), both[:, :inner], both[:, inner:])
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(h, down, group, down_scale)
        return result

    return Provider("torch_int4pack", nbytes, count, run), min(spent)


def memory_read() -> Provider:
    """Plain reading: the sum of 64 MB of float32."""
    large = torch.ones(4, TOUCHED // 4)
    return Provider("memory_read", TOUCHED, 4, lambda e: large[e].sum())


def measure(providers: list[Provider], repeats: int) -> dict[str, list[float]]:
    """Seconds an expert, of every sample; the first repeat warms up and is dropped."""
    seconds: dict[str, list[float]] = {provider.name: [] for provider in providers}
    for repeat in range(repeats + 1):
        for provider in providers:
            for e in range(provider.samples or provider.experts):
                began = time.thread_time()
                provider.run((e + repeat * (provider.samples or 0)) % provider.experts)
                if repeat:
                    seconds[provider.name].append((time.thread_time() - began) / provider.at_once)
    return seconds


def rows_of(providers: list[Provider], repeats: int, **about: Any) -> list[dict[str, Any]]:
    """Result rows: time and speed of each provider, and speed of `rgpu` over each other one of the same run."""
    found, seconds, speeds = [], measure(providers, repeats), {}
    for provider in providers:
        took = np.array(seconds[provider.name])
        speeds[provider.name] = provider.nbytes / took / 1e9
        for metric, unit, values in (("expert_us", "us", 1e6 * took), ("stored_gbps", "GB/s", speeds[provider.name])):
            best = values.min() if unit == "us" else values.max()
            found.append(row(metric, unit, values, float(best), provider=provider.name, **about))
    for name in (n for n in speeds if n != "rgpu"):
        # experts a second, but bytes a second against plain reading
        rates = speeds if name == "memory_read" else {n: 1 / np.array(took) for n, took in seconds.items()}
        ours, theirs = rates["rgpu"], rates[name]
        best = float(ours.max() / theirs.max())
        ratio = [np.median(ours) / np.median(theirs)]
        found.append(row("speed_of_rgpu_over", "ratio", ratio, best, provider=name, **about))
    return found


def row(metric: str, unit: str, values: Any, best: float, **about: Any) -> dict[str, Any]:
    p20, p50, p80 = (float(v) for v in np.percentile(values, [20, 50, 80]))
    spread = {"best": best, "p20": p20, "p50": p50, "p80": p80}
    return {"benchmark": "cpu_experts", "metric": metric, "unit": unit, **spread, **about}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="", help="names of storage formats, with commas (all of them)")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wanted = arguments.formats.split(",") if arguments.formats else [fmt.name for fmt in FORMATS]
    facts = stamp({"benchmark": "cpu_experts", "repeats": arguments.repeats, "touched": TOUCHED})
    RESULTS.parent.mkdir(exist_ok=True)
    for shape in arguments.shapes.split(","):
        inner, hidden = SHAPES[shape]
        for plain in (fmt for fmt in FORMATS if fmt.name in wanted):
            fmt = Int4(32) if plain.name == "int4" and inner % 128 else plain
            layout = SlotLayout(inner, hidden, fmt)
            try:
                about = {"format": fmt.name, "group": fmt.group, "shape": shape, "bits": layout.bits_per_weight}
            except InputError:
                continue  # the format does not come in this width
            for count in ROWS:
                x = torch.randn(count, hidden)
                providers, more = [*stored(layout, x), plain_bf16(inner, hidden, x), memory_read()], {}
                if fmt.name == "int4":
                    packed, pack_ms = packed_int4(inner, hidden, fmt.group, x)
                    providers, more = [*providers, packed], {"pack_ms": pack_ms}
                rows = rows_of(providers, arguments.repeats, x=count, **about, **more)
                with RESULTS.open("a") as out:
                    out.writelines(json.dumps(r | facts) + "\n" for r in rows)
                for r in rows:
                    where = f"{shape} {fmt.name} M={count}"
                    values = f"best={r['best']:<9.4g} p50={r['p50']:.4g}"
                    print(f"{where:30s} {r['provider']:17s} {r['metric']:19s} {values}", flush=True)


if __name__ == "__main__":
    main()
