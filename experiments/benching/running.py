"""The kernel benchmark: every model, format and number of rows within a budget of time and memory."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch

from rgpu.errors import InputError
from rgpu.experiments.benching.cases import format_of, free_bytes, make_pool, model_of
from rgpu.experiments.benching.measuring import Measured, Setting, made, measure, plan
from rgpu.experiments.benching.providers import absent, families
from rgpu.experiments.benching.roofline import measure_roof
from rgpu.experiments.benching.timing import clock_of
from rgpu.results.provenance import stamp

CPU_WORKING_SET = 64 * 2**20  # at least, and twice the last-level cache where its size is known
DEVICES = ("auto", "cpu", "cuda")


def device_of(name: str) -> torch.device:
    """The device by name; `InputError` for an unknown one, or a GPU that is not there."""
    if name not in DEVICES:
        raise InputError(f"device: got {name!r}; expected one of {', '.join(DEVICES)}; leave it out for auto")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("device: got cuda; expected a GPU that torch can use; give device=cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def setting_of(device: torch.device, threads: int, repeats: int, seconds: float, seed: int, config: Any) -> Setting:
    """Measures the machine and gathers where the numbers come from."""
    if threads < 1 or repeats < 1:
        raise InputError(f"bench: got threads={threads}, repeats={repeats}; expected 1 or more of each")
    torch.set_num_threads(threads)
    clock = clock_of(device, threads)
    facts = stamp(config, seed=seed)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else facts["hardware"]
    facts = {"device": name, "torch": torch.__version__, "triton": _version("triton"), **facts}
    return Setting(device, clock, threads, measure_roof(device, clock), repeats, seconds, seed, facts)


def run(
    models: Sequence[str], formats: Sequence[str], rows: Sequence[int], providers: Sequence[str] | None,
    setting: Setting, budget_s: float, heard: Callable[[Measured], None] = lambda _: None,
) -> Measured:  # fmt: skip
    """Measures until `budget_s` is over; what there was no time for is in `skipped`. `heard` is called after each number
    of rows. Unknown names: `InputError` before anything is measured."""
    check(models, formats, rows)
    here = families(providers, setting.device)
    out, end = Measured(), time.monotonic() + budget_s
    for package, why in absent().items():
        out.skipped[package] = why
    for model, fmt in plan(models, formats):
        if time.monotonic() > end:
            out.skipped[f"{model} {fmt}"] = f"the budget of {budget_s:g} s was over"
            continue
        try:
            pool = make_pool(
                model_of(model),
                fmt,
                setting.device,
                working_set(setting.device),
                most_bytes(setting.device),
                setting.seed,
            )
        except InputError as error:
            out.skipped[f"{model} {fmt}"] = str(error)
            continue
        calls = [(f, name, call) for f in here for name, call in made(pool, f, setting, providers, out).items()]
        for count in rows:
            if time.monotonic() > end:
                out.skipped[f"{model} {fmt} rows={count}"] = f"the budget of {budget_s:g} s was over"
                continue
            measure(pool, count, calls, setting, out)
            heard(out)
        del calls, pool  # before the next one is made: memory for one is what was counted on
    return out


def check(models: Sequence[str], formats: Sequence[str], rows: Sequence[int]) -> None:
    """`InputError` for names that do not exist, nothing to measure, and rows below 1."""
    for key, values in (("models", models), ("formats", formats), ("rows", rows)):
        if not values:
            raise InputError(f"{key}: got an empty list; expected one or more; leave it out for the defaults")
    for model in models:
        model_of(model)
    for fmt in formats:
        format_of(fmt)
    if wrong := [count for count in rows if count < 1]:
        raise InputError(f"rows: got {wrong[0]}; expected 1 or more")


def working_set(device: torch.device) -> int:
    """Bytes of different experts at least, so that weights come from memory and not from a cache."""
    if device.type == "cuda":
        return 4 * int(torch.cuda.get_device_properties(device).L2_cache_size)
    cache = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names else 0
    return max(CPU_WORKING_SET, 2 * cache)


def most_bytes(device: torch.device) -> int:
    """Bytes that a pool may take: some keep a second copy of it, and calls need room."""
    return free_bytes(device) // (3 if device.type == "cuda" else 4)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"none (Python {platform.python_version()})"
