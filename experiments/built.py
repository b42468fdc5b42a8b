"""From a config node to its object, after each value was held against the annotation of the parameter it is for."""

import dataclasses
import inspect
import types
import typing
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.mistakes import KINDS


def built(cfg: DictConfig, group: str, **more: Any) -> Any:
    """The object of `cfg` (with `_target_`), `more` passed beside; InputError where a value cannot be its parameter's,
    null above all."""
    hints, defaults = _parameters(cfg)
    for name, hint in hints.items():
        if name in more or name not in cfg or OmegaConf.is_missing(cfg, name) or fits(value := cfg[name], hint):
            continue
        got = "null" if value is None else repr(value)
        remedy = f"set {group}.{name}={_word(defaults[name])}" if name in defaults else "give one"
        raise InputError(f"{group}.{name}: got {got}; expected {_expected(hint)}; {remedy}")
    return instantiate(cfg, **more)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from yaml may be given for a parameter so annotated; what is unknown here always fits."""
    kinds = _kinds(hint)
    if value is None:
        return type(None) in kinds or Any in kinds
    if not set(kinds) <= {type(None), int, float, bool}:
        return True
    if isinstance(value, bool):
        return bool in kinds
    return (isinstance(value, int) and bool({int, float} & set(kinds))) or (isinstance(value, float) and float in kinds)


def _kinds(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _expected(hint: Any) -> str:
    names = {**{kind: words for kind, (words, _) in KINDS.items()}, str: "a text", Path: "a path", type(None): "null"}
    return " or ".join(names.get(kind, getattr(kind, "__name__", str(kind))) for kind in _kinds(hint))


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _parameters(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(annotations, defaults) of what the target takes; nothing for one that has no annotations or cannot be imported."""
    try:
        target = get_object(str(cfg["_target_"]))
        taken = inspect.signature(target).parameters
        plain = inspect.isclass(target) and not dataclasses.is_dataclass(target)
        hints = typing.get_type_hints(target.__init__ if plain else target)
    except Exception:  # `instantiate` says what is wrong with a target
        return {}, {}
    defaults = {n: p.default for n, p in taken.items() if p.default is not inspect.Parameter.empty}
    return {n: hints[n] for n in taken if n in hints}, defaults
