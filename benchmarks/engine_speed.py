"""How fast rgpu's engine is beside stock transformers, and beside accelerate's disk offload, on this machine's CPU.

    python benchmarks/engine_speed.py [--model reference,random] [--repeats 5] [--tokens 24] [--layers 10] [--dry]

Prints a table and appends dated rows to benchmarks/results/engine_speed.jsonl. Models: the shipped reference model, a random
checkpoint of Qwen3-MoE's shape (1.5 GB in bfloat16, written to a temporary folder), or any folder with a model.

Decode: contestants take turns in one process, in another order every repeat. A sample is the median time of one greedy
step (one forward pass and an argmax, batch 1) after a prompt of 8 tokens, another one each repeat; a ratio is that of samples
of one repeat. The random model is fed tokens drawn at random: its own greedy text repeats one token, which no cache misses.
Everyone ran once before, so files are in the page cache for all of them. OpenMP's threads sleep while
they wait (OMP_WAIT_POLICY=PASSIVE, all contestants alike): where another process has one of the cores, threads that spin
make a step of any contestant up to a hundred times slower, and a sample says nothing.

Load: each in a fresh process, in turns, with the store already converted. `ready_s` runs from the first line of loading,
imports aside, until a prompt of 8 tokens has gone through the model; `load_s` until the loader returned; with the files in
the page cache (warm) and without (cold). Peaks are those of the process during that and 8 steps of decode, `peak_anon` what
is not backed by a file, of which `imports_anon` was there before.

Contestants, in bfloat16 unless said:
    stock_default, stock_eager   transformers, its default experts (grouped_mm) and `eager`
    rgpu_resident                every expert in a slot from the beginning
    rgpu_int4_..., rgpu_bf16_... the same with experts in int4 or bfloat16, by `CpuCompute`
    rgpu_int4_f32_...            experts in int4 and all else in float32: quicker than bfloat16 on a processor that has no
                                 instructions for it, and more exact
    rgpu_lru                     slots for a quarter of the experts, LRU, no prefetch
    rgpu_cpu, rgpu_int4_cpu      as rgpu_lru, but misses are computed where the store has them (pool.miss=cpu)
    rgpu_on_demand               nothing kept, each expert loaded when it is needed
    accelerate_disk              device_map with the experts of a quarter of the layers in RAM, all other experts on disk,
                                 beside which a layer is in RAM while it runs; left out where accelerate is not installed
    ..._direct, ..._cold         the page cache does not help, as where memory is capped: the store is read past it, and
                                 the offloaded files are dropped from it before every pass
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.memory.process import PeakMemory, peak_rss_bytes, rss_anon_bytes
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.quant.formats import by_name
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.results.provenance import stamp
from rgpu.runtime.session import OffloadSession
from rgpu.traces.moe_layers import moe_layers
from rgpu.types import MoEShape

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "engine_speed.jsonl"
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
DTYPE = torch.bfloat16
PROMPT, SHARE, LOAD_STEPS = 8, 0.25, 8
PAIRS = (  # contestant, whom it is compared with
    ("rgpu_resident", "stock_default"), ("rgpu_resident", "stock_eager"), ("rgpu_bf16_resident", "stock_default"),
    ("rgpu_int4_resident", "stock_default"),
    ("rgpu_int4_resident", "stock_eager"), ("rgpu_int4_f32_resident", "stock_default"),
    ("rgpu_int4_f32_cpu", "accelerate_disk"), ("rgpu_lru", "accelerate_disk"), ("rgpu_on_demand", "accelerate_disk"),
    ("rgpu_lru", "rgpu_on_demand"), ("rgpu_lru", "stock_default"), ("rgpu_int4_lru", "accelerate_disk"),
    ("rgpu_lru_direct", "accelerate_disk_cold"), ("rgpu_on_demand_direct", "accelerate_disk_cold"),
    ("rgpu_int4_lru_direct", "accelerate_disk_cold"), ("rgpu_cpu", "accelerate_disk"), ("rgpu_int4_cpu", "accelerate_disk"),
    ("rgpu_bf16_cpu", "accelerate_disk"), ("accelerate_disk", "stock_default"),
)  # fmt: skip
NAMES = (
    "stock_default", "stock_eager", "rgpu_resident", "rgpu_bf16_resident", "rgpu_int4_resident", "rgpu_lru",
    "rgpu_int4_lru", "rgpu_on_demand", "accelerate_disk", "rgpu_lru_direct", "rgpu_int4_lru_direct",
    "rgpu_on_demand_direct", "accelerate_disk_cold", "rgpu_cpu", "rgpu_bf16_cpu", "rgpu_int4_cpu",
    "rgpu_int4_f32_resident", "rgpu_int4_f32_cpu",
)  # fmt: skip
STOCK = {"stock_default": "grouped_mm", "stock_eager": "eager"}
MISSING = "accelerate is not installed: accelerate_disk is left out"


def random_model(folder: Path, work: Path, layers: int) -> str:
    """Of Qwen3-MoE's shape at half its widths, with 64 experts a layer of which a token uses 8."""
    config = Qwen3MoeConfig(
        vocab_size=32000, hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=4,
        head_dim=64, num_experts=64, num_experts_per_tok=8, moe_intermediate_size=384, intermediate_size=2048,
        norm_topk_prob=True,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=DTYPE).save_pretrained(folder)
    return str(folder)


def stock(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE, local_files_only=True, **options).eval()


def on_disk(folder: Path, offload: Path) -> Any:
    """Every module with weights of its own is named: transformers refuses other maps that offload to disk."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    kept = round(SHARE * config.num_hidden_layers)
    places: dict[str, str] = {}
    for name, module in bare.named_modules():
        if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            layer = int(name.split(".")[2]) if name.endswith(".experts") else 0
            places[name] = "disk" if name.endswith(".experts") and layer >= kept else "cpu"
    return stock(folder, device_map=places, offload_folder=str(offload))


def forget(folder: Path) -> None:
    """Drops the files of `folder` from the page cache."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def session(name: str, folder: Path, cache: Path) -> OffloadSession:
    """An open session as the contestant `name`."""
    config = AutoConfig.from_pretrained(folder)
    group = next(g for g in (128, 64, 32) if config.moe_intermediate_size % g == config.hidden_size % g == 0)
    options: dict[str, Any] = {"store": "direct" if name.endswith("direct") else "disk"}
    if name.endswith("_cpu"):
        options["handler"] = "cpu"
    if "bf16" in name:
        options |= {"quantize": by_name("bf16"), "kernel": CpuCompute}
    if "int4" in name:
        options |= {"quantize": by_name("int4", group=group), "kernel": CpuCompute}
    slots = max(2, round(SHARE * config.num_experts)) if not name.endswith("resident") else config.num_experts
    keeps = "on_demand" not in name
    policy = Lru() if keeps else OnDemand()
    pool = PoolConfig("layer", slots, staging=1 if keeps else slots)

    def controller(shape: MoEShape) -> Controller:
        filled = np.ones((shape.layers, shape.experts), np.int64) if name.endswith("resident") else None
        return Controller(policy, shape, pool, keep_log=False, uses_LE=filled)

    dtype = torch.float32 if "_f32" in name else DTYPE
    return OffloadSession.open(folder, controller, dtype=dtype, cache=cache, record=False, **options)


def opened(name: str, folder: Path, work: Path, stack: ExitStack) -> Any:
    """The model of the contestant `name`, ready to run."""
    if name.startswith("accelerate"):
        offload = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=work)))
        model = on_disk(folder, offload)
        if name.endswith("cold"):
            model.register_forward_pre_hook(lambda *_: forget(offload))
        return model
    if name.startswith("stock"):
        return stock(folder, **({"experts_implementation": "eager"} if name == "stock_eager" else {}))
    return stack.enter_context(session(name, folder, work / "stores")).model


@torch.inference_mode()
def steps(model: Any, count: int, text: int = 0, drawn: bool = False) -> Iterator[float]:
    """Seconds of the prompt's pass, then of each greedy step; `text` numbers the prompt. `drawn`: argmax is taken, but the
    next token is one at random."""
    draw = torch.Generator().manual_seed(text)
    some = torch.randint(1, model.config.vocab_size, (1, PROMPT + count + 1), generator=draw)
    cache, ids = None, some[:, :PROMPT]
    for step in range(count + 1):
        began = time.perf_counter()
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        yield time.perf_counter() - began
        if drawn:
            ids = some[:, PROMPT + step, None]


def decode(names: list[str], folder: Path, work: Path, repeats: int, tokens: int, drawn: bool) -> dict[str, Any]:
    """`ms`: milliseconds of a step, one sample a repeat and contestant; `hits`: the share of expert uses that hit."""
    found: dict[str, list[float]] = {name: [] for name in names}
    controllers: dict[str, Any] = {}
    shuffle = random.Random(0).shuffle
    with ExitStack() as stack:
        shared = None if not any(name.startswith("stock") for name in names) else stock(folder)
        run: dict[str, Callable[[int, int], list[float]]] = {}
        for name in names:
            model = shared if name.startswith("stock") else opened(name, folder, work, stack)
            run[name] = partial(_steps_of, model, STOCK.get(name), drawn)
            if name.startswith("rgpu"):
                controllers[name] = moe_layers(model)[0].experts.run.controller
        for name in names:
            run[name](tokens if not _slow(name) else 2, 0)
        before = {name: (c.hits, c.accesses) for name, c in controllers.items()}
        for repeat in range(repeats):
            order = list(names)
            shuffle(order)
            for name in order:
                count = tokens if not _slow(name) else max(2, tokens // 4)
                found[name].append(1e3 * statistics.median(run[name](count, repeat + 1)[1:]))
        hits = {n: (c.hits - before[n][0]) / (c.accesses - before[n][1]) for n, c in controllers.items()}
    return {"ms": found, "hits": hits}


def _slow(name: str) -> bool:
    return name.endswith(("cold", "direct"))


def _steps_of(model: Any, experts: str | None, drawn: bool, count: int, text: int) -> list[float]:
    if experts is not None:
        model.set_experts_implementation(experts)
    return list(steps(model, count, text, drawn))


def load(name: str, folder: Path, work: Path) -> dict[str, float]:
    """What loading took in this process."""
    before, megabyte = rss_anon_bytes(), 2.0**20
    with PeakMemory(0.002) as peak, ExitStack() as stack:
        began = time.perf_counter()
        model = opened(name, folder, work, stack)
        loaded = time.perf_counter()
        took = list(steps(model, LOAD_STEPS))
    return {
        "load_s": loaded - began, "ready_s": loaded - began + took[0], "peak_rss_mb": peak_rss_bytes() / megabyte,
        "peak_anon_mb": peak.nbytes / megabyte, "imports_anon_mb": before / megabyte,
    }  # fmt: skip


def child(**task: Any) -> Any:
    """Runs `decode` or `load` in a fresh process."""
    command = [sys.executable, str(Path(__file__)), "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | QUIET)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def row(metric: str, unit: str, contestant: str, values: list[float], **about: Any) -> dict[str, Any]:
    p20, p50, p80 = (float(v) for v in np.percentile(values, [20, 50, 80]))
    where = f"{about['model']:9s} {about.get('files', ''):4s} {contestant:21s} {metric:22s}"
    against = f" vs {about['against']}" if "against" in about else ""
    print(f"{where} {p50:9.4g} {unit:6s} [{p20:.4g}, {p80:.4g}]{against}", flush=True)
    spread = {"p20": p20, "p50": p50, "p80": p80, "n": len(values)}
    return {"benchmark": "engine_speed", "metric": metric, "unit": unit, "contestant": contestant, **spread, **about}


def ratios(metric: str, samples: dict[str, list[float]], pairs: Any, **about: Any) -> list[dict[str, Any]]:
    """How many times more `against` takes, repeat by repeat."""
    return [
        row(metric, "ratio", ours, (np.array(samples[theirs]) / np.array(samples[ours])).tolist(), against=theirs, **about)
        for ours, theirs in pairs
        if ours in samples and theirs in samples
    ]  # fmt: skip


def measure(
    label: str, folder: Path, names: list[str], work: Path, repeats: int, tokens: int, parts: str
) -> Iterator[list[dict[str, Any]]]:
    """All rows of one model, part by part."""
    about = {"model": label, "dtype": "bfloat16", "threads": torch.get_num_threads()}
    task = {"folder": str(folder), "work": str(work)}
    if "decode" in parts:
        drawn = label == "random"
        got, about_text = child(do="decode", names=names, repeats=repeats, tokens=tokens, drawn=drawn, **task), about | {
            "tokens": tokens, "text": "drawn" if drawn else "greedy"
        }  # fmt: skip
        rows = [row("decode_step", "ms", name, got["ms"][name], **about_text) for name in names]
        rows += [row("hit_rate", "share", name, [value], **about_text) for name, value in got["hits"].items()]
        yield rows + ratios("decode_speed_over", got["ms"], PAIRS, **about_text)
    if "load" in parts:
        loaders: tuple[str, ...] = ("stock_default", "rgpu_resident", "rgpu_lru", "rgpu_int4_resident", "rgpu_int4_lru")
        loaders = tuple(name for name in loaders if name in names)
        for name in loaders[1:]:
            child(do="load", name=name, **task)  # converts the store
        for cold in (False, True):
            yield load_rows(loaders, repeats, cold, task, about)


def load_rows(loaders: tuple[str, ...], repeats: int, cold: bool, task: Any, about: Any) -> list[Any]:
    """What loading takes; `cold`: with none of the files in the page cache."""
    taken: dict[str, list[Any]] = {name: [] for name in loaders}
    for _ in range(repeats):
        for name in loaders:
            if cold:
                forget(Path(task["folder"]))
                forget(Path(task["work"]) / "stores")
            taken[name].append(child(do="load", name=name, **task))
    rows, about = [], about | {"files": "cold" if cold else "warm"}
    for metric in ("load_s", "ready_s", "peak_anon_mb", "peak_rss_mb", "imports_anon_mb"):
        by = {name: [one[metric] for one in taken[name]] for name in loaders}
        unit = metric.rpartition("_")[2]
        rows += [row(metric, unit, name, by[name], **about) for name in loaders]
        pairs = [(name, "stock_default") for name in loaders[1:]]
        rows += ratios(f"{metric.removesuffix('_' + unit)}_of_stock_over", by, pairs, **about)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference,random", help="reference, random, or folders, with commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="greedy steps of a sample")
    parser.add_argument("--layers", type=int, default=10, help="of the random model; 150 MB each")
    parser.add_argument("--contestants", default=",".join(NAMES))
    parser.add_argument("--parts", default="decode,load")
    parser.add_argument("--note", default="", help="kept in the rows")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        task = json.loads(arguments.child)
        do, folder, work = task.pop("do"), Path(task.pop("folder")), Path(task.pop("work"))
        print(json.dumps({"decode": decode, "load": load, "write": random_model}[do](folder=folder, work=work, **task)))  # type: ignore[operator]
        return
    names = [name for name in NAMES if name in arguments.contestants.split(",")]
    about: dict[str, Any] = {"benchmark": "engine_speed", "repeats": arguments.repeats, "tokens": arguments.tokens}
    facts = stamp(about) | ({"note": arguments.note} if arguments.note else {})
    if any("accelerate" in name for name in names) and importlib.util.find_spec("accelerate") is None:
        print(MISSING)
        names = [name for name in names if "accelerate" not in name]
        facts["missing"] = MISSING
    elif any("accelerate" in name for name in names):
        facts["accelerate"] = importlib.metadata.version("accelerate")
    with tempfile.TemporaryDirectory(prefix="rgpu-engine-") as scratch:
        for label in arguments.model.split(","):
            work = Path(scratch) / Path(label).name
            work.mkdir()
            folder = ROOT / "assets" / "reference" if label == "reference" else Path(label)
            if label == "random":
                folder = work / "model"  # written by another process: peaks of this one would show in those it starts
                child(do="write", folder=str(folder), work=str(work), layers=arguments.layers)
            size = arguments.repeats, arguments.tokens, arguments.parts
            for rows in measure(Path(label).name, folder, names, work, *size):
                if not arguments.dry:
                    with RESULTS.open("a") as out:
                        out.writelines(json.dumps(r | facts) + "\n" for r in rows)


if __name__ == "__main__":
    main()
