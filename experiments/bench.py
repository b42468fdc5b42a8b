"""Measure this machine: the kernels that compute experts (kernels), memory, disk, CPU and GPU as a profile (link), or what
the engine takes with one model (engine)."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.benching.calibrating import POLICIES as CALIBRATING
from rgpu.experiments.benching.calibrating import Calibration, write_engine_profile
from rgpu.experiments.benching.figure import draw
from rgpu.experiments.benching.link import Settings, measure_profile, write_profile
from rgpu.experiments.benching.live_events import Bench, prompts_of, run_live
from rgpu.experiments.benching.measuring import COLUMNS
from rgpu.experiments.benching.providers import families
from rgpu.experiments.benching.quiet import Quiet
from rgpu.experiments.benching.running import check, device_of, setting_of
from rgpu.experiments.benching.running import run as measure
from rgpu.experiments.benching.table import write_rows
from rgpu.experiments.command import command
from rgpu.experiments.inputs import policy_named
from rgpu.runtime.loading import load_tokenizer
from rgpu.traces.storage import load_trace

WHAT = ("kernels", "link", "engine")


@command("bench")
def run(cfg: DictConfig) -> dict[str, Any]:
    """Writes into `out`: `kernels.csv`, `.svg` and `.png`; or `hardware/<name>.yaml` (link), `engine/<name>.yaml` (engine)."""
    if cfg.what not in WHAT:
        raise InputError(f"what: got {cfg.what!r}; expected {', '.join(WHAT[:-1])} or {WHAT[-1]}")
    if cfg.what == "link":
        return link(cfg)
    if cfg.what == "engine":
        return engine(cfg)
    models, formats, rows = (list(cfg[key]) for key in ("models", "formats", "rows"))
    providers = None if cfg.providers is None else list(cfg.providers)
    device = device_of(cfg.device)
    check(models, formats, rows)
    families(providers, device)
    config = OmegaConf.to_container(cfg, resolve=True)
    setting = setting_of(device, threads_of(cfg.threads, 1), cfg.repeats, cfg.seconds, cfg.seed, config)
    found = measure(models, formats, rows, providers, setting, cfg.budget_s)
    out = Path(cfg.out)
    result = {
        "device": setting.facts["device"], "memory_gb_per_s": setting.roof.gb_per_s, "gflops": setting.roof.gflops,
        "rows": len(found.rows), "skipped": found.skipped, "failed": found.failed,
    }  # fmt: skip
    if not found.rows:
        return result
    table = out / f"{cfg.what}.csv"
    write_rows(table, found.rows, COLUMNS)
    return {"csv": table, "figures": draw(table, out, cfg.what), **result}


def link(cfg: DictConfig) -> dict[str, Any]:
    """The profile of this machine, usable with `--config-dir` or `hardware_file`."""
    out, asked = Path(cfg.out), cfg.link
    threads = threads_of(cfg.threads, usable_cores())
    settings = Settings(asked.model, asked.format, threads, cfg.repeats, out, int(asked.disk_mib) * 2**20, cfg.seed)
    profile, beside = measure_profile(str(asked.name), settings)
    path = write_profile(profile, out)
    numbers = {name: getattr(profile, name) for name in profile.sources}
    return {"profile": path, **numbers, **beside, "sources": dict(profile.sources)}


def engine(cfg: DictConfig) -> dict[str, Any]:
    """The profile of the engine on this CPU with one model, for `rgpu reproduce suite=validation validation.profile=PATH`."""
    asked = cfg.engine
    policies = {name: policy_named(name) for name in dict.fromkeys((*CALIBRATING, *asked.policies))}
    batches, slots = tuple(int(b) for b in asked.batches), tuple(int(n) for n in asked.slots)
    folder = Path(asked.model)
    tokenizer = load_tokenizer(folder)
    prompts = prompts_of(asked.prompts, tokenizer, asked.prompt_tokens, 0, max(batches))
    trace = load_trace(Path(asked.trace)) if any(p.traits.calibration for p in policies.values()) else None
    bench = Bench(folder, prompts, asked.new_tokens, policies, trace, seed=cfg.seed)
    calibration = Calibration(bench, batches, slots, tuple(asked.policies), Quiet(asked.others, asked.patience_s))
    run_live(bench, calibration.configurations()[0])  # the first run of a process takes longer
    for _ in tqdm(range(cfg.repeats), desc="rounds", disable=None):
        calibration.run_round()
    profile = calibration.profile(str(asked.name))
    path = write_engine_profile(profile, Path(cfg.out) / "engine" / f"{asked.name}.yaml")
    numbers = [{k: getattr(p, k) for k in p.__slots__} for p in profile.passes]
    return {"profile": path, "copy_gb_per_s": profile.copy_gb_per_s, "copy_latency_us": profile.copy_latency_us,
            "passes": numbers, "sources": dict(profile.sources)}  # fmt: skip


def threads_of(asked: Any, default: int) -> int:
    """How many threads the CPU computes with; null: the default."""
    if asked is None:
        return default
    if type(asked) is not int:
        raise InputError(f"bench: got threads={asked}, expected a whole number from 1, or null")
    return asked


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    run.main()
