"""Config mistakes in one line: what was got, what was expected, the nearest thing that exists."""

import difflib
import importlib
import inspect
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rgpu.errors import InputError

KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("an integer", (int,)),
    float: ("a number", (int, float)),
    list: ("a list such as [a,b]", (list,)),
    dict: ("a group of settings", (dict,)),
}


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def nearest(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`did you mean X?`, or the choices when none is close."""
    known = sorted(set(choices))
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    if close:
        return f"did you mean {close[0]}?"
    return f"expected one of: {', '.join(known[:24])}" if known else "nothing can be set there"


def flatten(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a plain nested dict, inner nodes included, `_target_` and its like left out."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not str(key).startswith("_"):
                yield prefix + str(key)
                yield from flatten(value, f"{prefix}{key}.")


def groups() -> list[str]:
    return [name for name in GlobalHydra.instance().config_loader().list_groups("") if name != "hydra"]


def defaults_of(config_name: str, overrides: list[Override]) -> DictConfig:
    """The config with the group choices of `overrides` and none of their values; needs an initialised Hydra."""
    known = {*groups(), "hydra.searchpath"}
    chosen = [o.input_line for o in overrides if o.key_or_group in known and o.input_line and not o.is_sweep_override()]
    try:
        return compose(config_name, overrides=chosen)
    except (ConfigCompositionException, OmegaConfBaseException):
        return compose(config_name)


def check_types(cfg: DictConfig, config_name: str, lines: Iterable[str]) -> None:
    """Raise InputError where an override gives another kind of value than the default has (null always fits)."""
    known = set(groups())
    parsed = OverridesParser.create().parse_overrides(list(lines))
    overrides = [o for o in parsed if not o.is_delete() and not o.is_add()]
    values = [o for o in overrides if o.key_or_group not in known and not o.key_or_group.startswith("hydra")]
    reference = defaults_of(config_name, overrides) if values else cfg
    for override in values:
        key = override.key_or_group
        had, got = _plain(reference, key), _plain(cfg, key)
        if got is None or type(had) not in KINDS:
            continue
        expected, kinds = KINDS[type(had)]
        if not isinstance(got, kinds) or (isinstance(got, bool) and not isinstance(had, bool)):
            raise InputError(f"{key}: got {got!r}, expected {expected}; give e.g. {key}={_example(had)}")


def _plain(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key, throw_on_missing=False)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _example(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else one_line(str(value).replace("'", "")).replace(", ", ",")


def quoted(line: str) -> str:
    """`prompt=Hello, world` as Hydra reads it; only a value with blanks that nobody quoted is changed."""
    found = re.fullmatch(r"([+~]*[\w.@/$-]+)=(.*)", line, flags=re.DOTALL)
    if not found or not re.search(r"\s", found[2]) or re.match(r"\s*([\[{'\"]|\$\{.*\}\s*$)", found[2]):
        return line
    value = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ("\\" + m[2] if m[2] else ""), found[2]).replace("${", "\\${")
    return f'{found[1]}="{value}"'


def explain(error: Exception, config_name: str, arguments: Namespace) -> str | None:
    """The line for a config mistake; None when `error` is something else (a defect keeps its traceback)."""
    if isinstance(error, InstantiationException):
        return _bad_argument(error)
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, OverrideParseException):
        reason = one_line(error).removeprefix(f"Error parsing override '{error.override}'")
        reason = reason.partition(" See ")[0].strip()
        return f"cannot read {error.override!r} ({reason}); expected key=value, special characters in 'key=\"value\"'"
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or one_line(error).rpartition(" ")[2]
        return f"no value for {key}; give {key}=..."
    if isinstance(error, HydraException | OmegaConfBaseException):
        found = re.search(r"Could not override '([^']+)'", str(error))
        ambiguous = re.search(r"Ambiguous value for argument '(.+?)'\n", str(error))
        if ambiguous:
            several = "write key=[a,b] for a list, 'key=\"a,b\"' for a text, -m for several runs"
            return f"{ambiguous[1]!r} holds a comma: {several}"
        return _unknown_key(found[1], config_name, arguments) if found else one_line(error)
    return None


def _unknown_choice(error: MissingConfigException) -> str:
    asked = str(error.missing_cfg_file or "")
    group, _, choice = asked.rpartition("/")
    options = [Path(name).stem for name in error.options or []]
    if not group or not options:
        return one_line(error)
    return f"no {group}={choice}; {nearest(choice, options)}"


def _unknown_key(key: str, config_name: str, arguments: Namespace) -> str:
    config_dir = arguments.config_dir
    search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        valid = []
        for line in arguments.overrides:
            try:
                valid += OverridesParser.create().parse_overrides([line])
            except OverrideParseException:
                continue
        reference = defaults_of(config_name, valid + OverridesParser.create().parse_overrides(search))
        keys, names = list(flatten(OmegaConf.to_container(reference))), groups()
    parent, _, last = key.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    arguments_of_target = _parameters(str(OmegaConf.select(reference, f"{parent}._target_"))) if parent else []
    if last in arguments_of_target:
        return f"{key} is not in the config; add it with +{key}=..."
    prefix = f"{parent}." if parent else ""
    close = [prefix + name for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)]
    if not close and not siblings or not parent:
        close = difflib.get_close_matches(key, [*names, *keys], n=1, cutoff=0.6)
    if close:
        return f"unknown key {key}; did you mean {close[0]}?"
    ends = [k for k in keys if difflib.get_close_matches(last, [k.rpartition(".")[2]], n=1, cutoff=0.8)]
    if ends:
        return f"unknown key {key}; did you mean {ends[0]}?"
    return f"unknown key {key}; {nearest(last, siblings or [k for k in keys if '.' not in k], cutoff=1.0)}"


def _bad_argument(error: InstantiationException) -> str | None:
    cause = error.__cause__
    if isinstance(cause, InputError):
        return one_line(cause)
    where = re.search(r"full_key: (\S+)", str(error))
    node = where[1] if where else ""
    if re.match(r"Error locating target|Error loading", str(error)):
        return f"{node}._target_ cannot be imported: {one_line(cause or error)}"
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
    missing = re.search(r"missing \d+ required (?:keyword-only |positional )?arguments?: '(\w+)'", str(cause))
    if unknown:
        target = re.search(r"Error in call to target '([^']+)'", str(error))
        return f"unknown key {node}.{unknown[1]}; {nearest(unknown[1], _parameters(target[1] if target else ''))}"
    return f"no value for {node}.{missing[1]}; give +{node}.{missing[1]}=..." if missing else None


def _parameters(target: str) -> list[str]:
    module, _, name = target.rpartition(".")
    try:
        return [p for p in inspect.signature(getattr(importlib.import_module(module), name)).parameters if p != "self"]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
