"""Measure this machine: the kernels that compute experts (kernels), or memory, disk, CPU and GPU as a profile (link)."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.benching.figure import draw
from rgpu.experiments.benching.link import Settings, measure_profile, write_profile
from rgpu.experiments.benching.measuring import COLUMNS
from rgpu.experiments.benching.providers import families
from rgpu.experiments.benching.running import check, device_of, setting_of
from rgpu.experiments.benching.running import run as measure
from rgpu.experiments.benching.table import write_rows
from rgpu.experiments.command import command

WHAT = ("kernels", "link")


@command("bench")
def run(cfg: DictConfig) -> dict[str, Any]:
    """kernels: writes `kernels.csv`, `.svg` and `.png` into `out`; link: `hardware/<name>.yaml`."""
    if cfg.what not in WHAT:
        raise InputError(f"what: got {cfg.what!r}; expected {' or '.join(WHAT)}")
    if cfg.what == "link":
        return link(cfg)
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
