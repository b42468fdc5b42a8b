"""Measure what computes experts on this machine: microseconds, GB/s, and the share of what the machine can do at best."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.benching.figure import draw
from rgpu.experiments.benching.measuring import COLUMNS
from rgpu.experiments.benching.providers import families
from rgpu.experiments.benching.running import check, device_of, setting_of
from rgpu.experiments.benching.running import run as measure
from rgpu.experiments.benching.table import write_rows
from rgpu.experiments.command import command

WHAT = ("kernels",)


@command("bench")
def run(cfg: DictConfig) -> dict[str, Any]:
    """Writes `<what>.csv`, `<what>.svg` and `<what>.png` into `out`."""
    if cfg.what not in WHAT:
        raise InputError(f"what: got {cfg.what!r}; expected {' or '.join(WHAT)}")
    models, formats, rows = (list(cfg[key]) for key in ("models", "formats", "rows"))
    providers = None if cfg.providers is None else list(cfg.providers)
    device = device_of(cfg.device)
    check(models, formats, rows)
    families(providers, device)
    config = OmegaConf.to_container(cfg, resolve=True)
    setting = setting_of(device, cfg.threads, cfg.repeats, cfg.seconds, cfg.seed, config)
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


if __name__ == "__main__":
    run.main()
