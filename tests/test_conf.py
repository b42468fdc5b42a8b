"""Every config composes: each primary config, and each choice of each group in a primary config that uses the group."""

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from rgpu.cli import COMMANDS, available
from rgpu.experiments.built import fits

CONF = Path(__file__).resolve().parents[1] / "conf"
PRIMARY = sorted(p.stem for p in CONF.glob("*.yaml") if p.stem != "base")
CHOICES = sorted((p.parent.name, p.stem) for p in CONF.glob("*/*.yaml"))


def composed(name: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


def users(group: str) -> list[str]:
    """Primary configs whose defaults list names the group."""
    found = []
    for name in PRIMARY:
        plain = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
        defaults = plain.get("defaults", []) if isinstance(plain, dict) else []
        keys = [str(key) for entry in defaults if isinstance(entry, dict) for key in entry]
        found += [name] if group in [key.removeprefix("optional ").partition("@")[0] for key in keys] else []
    return found


def targets(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [t for value in node.values() for t in targets(value)]
    return [t for item in node for t in targets(item)] if isinstance(node, list) else []


@pytest.mark.parametrize("name", PRIMARY)
def test_primary_config_composes(name: str) -> None:
    assert composed(name)


@pytest.mark.parametrize("name", sorted(available()))
def test_command_keeps_the_working_directory_clean(name: str) -> None:
    hydra = composed(name).hydra
    assert (hydra.job.chdir, hydra.output_subdir, hydra.run.dir) == (False, None, ".")
    assert hydra.job_logging.handlers.console.stream == "ext://sys.stderr"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_choice_composes_and_its_target_exists(group: str, choice: str) -> None:
    primaries = users(group)
    assert primaries, f"no primary config has {group} in its defaults list"
    for name in primaries:
        cfg = composed(name, f"{group}={choice}")
        for target in targets(OmegaConf.to_container(cfg.get(group), throw_on_missing=False) if cfg.get(group) else {}):
            assert get_object(target)


def annotations(target: object) -> dict[str, object]:
    plain = isinstance(target, type) and not dataclasses.is_dataclass(target)
    return get_type_hints(target.__init__ if plain else target)  # type: ignore[misc]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_default_has_the_kind_of_its_parameter(group: str, choice: str) -> None:
    """A whole number as the default of a float would make `policy.step=0.5` a mistake on the command line."""
    cfg = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{choice}.yaml"), throw_on_missing=False)
    assert isinstance(cfg, dict)
    for name, value in cfg.items():
        if group in ("hardware", "cost") and isinstance(value, dict):
            whole = group == "cost" and str(name).startswith("window")
            assert type(value["value"]) is (int if whole else float), (name, value)
        if "_target_" not in cfg or name == "_target_" or value == "???":
            continue
        hint = annotations(get_object(cfg["_target_"]))[str(name)]
        kinds = get_args(hint) or (hint,)
        assert fits(value, hint), (name, value, hint)
        assert not (type(value) is int and float in kinds and int not in kinds), (name, value, hint)


def test_every_command_of_the_table_has_a_module_and_a_config() -> None:
    assert set(available()) == set(COMMANDS)
    assert set(COMMANDS) <= set(PRIMARY)
