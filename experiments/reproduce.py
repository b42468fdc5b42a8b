"""Run a suite: `study` (the default), `claims` (the Rotary GPU record), `field` (figures that others published),
`predictors` (every predictor on text it did not see), `validation` (the simulator against live runs)."""

import importlib
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, open_dict

from rgpu.errors import InputError
from rgpu.experiments.command import command

Suite = Callable[[DictConfig], dict[str, Any]]
SUITES: dict[str, tuple[str, str]] = {  # name: (module with `run`, where it writes unless `out` says otherwise)
    "study": ("rgpu.experiments.suites.study", "results/reproduce"),
    "claims": ("rgpu.experiments.suites.claims", "results/reproduce"),  # in a folder of its own there
    "field": ("rgpu.experiments.suites.field", "results/field"),
    "predictors": ("rgpu.experiments.suites.predictors", "results/predictors"),
    "validation": ("rgpu.experiments.suites.validation", "results/validation"),
}


def suite_named(name: str) -> tuple[Suite, str]:
    """(function, folder) of a suite; nothing of another suite is imported."""
    if name not in SUITES:
        raise InputError(f"suite: got {name!r}; expected one of {', '.join(SUITES)}; choose one")
    module, out = SUITES[name]
    return importlib.import_module(module).run, out


@command("reproduce")
def run(cfg: DictConfig) -> dict[str, Any]:
    suite, out = suite_named(cfg.suite)
    with open_dict(cfg):
        cfg.out = cfg.out or out
    return suite(cfg)


if __name__ == "__main__":
    run.main()
