"""A user's policy in one plain Python file: hooks by name, run by the same decision loop, uncompiled."""

import ast
import importlib.util
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from numba.core.dispatcher import Dispatcher

from rgpu.errors import InputError
from rgpu.policies.guard import guarded, with_checks
from rgpu.policies.loop import DEFAULTS
from rgpu.policies.policy import Traits

IMPLIED = {"admit": ("staging", True, "a miss that is not kept needs a staging slot"),
           "desired": ("demand", False, "it loads ahead, so hits alone do not rank it")}  # fmt: skip


@dataclass(frozen=True)
class Plain:
    """Loads `file`: functions named like the loop's hooks (at least `victim`), and optionally `TRAITS = Traits(...)`.

    Slow (about 0.1 to 0.3 million accesses a second) but exact: the loop is the same code. `hooks` are watched
    (`guard.py`), `own` as written. An `admit` hook implies `staging` (but for a bound), a `desired` hook `demand=False`;
    a file that says otherwise is refused. `called` is the name in results, by default the file's.
    """

    file: str
    called: str = ""
    traits: Traits = field(init=False)
    hooks: dict[str, Any] = field(init=False, repr=False)
    own: dict[str, Any] = field(init=False, repr=False)
    name: str = field(init=False)
    run: ClassVar[None] = None

    def __post_init__(self) -> None:
        path = Path(self.file)
        module = _module(path, self.file)
        hooks = {n: getattr(module, n) for n in (*DEFAULTS, "victim") if callable(getattr(module, n, None))}
        if "victim" not in hooks:
            raise InputError(
                f"policy.file: {self.file} has no function `victim(m, f)`; expected one that returns a slot"
            )
        own = {name: getattr(hook, "py_func", hook) for name, hook in hooks.items()}
        checks: dict[Dispatcher, Dispatcher] = {}
        for name, value in list(vars(module).items()):
            if isinstance(value, Dispatcher):  # an index out of range in a compiled helper would read other memory
                setattr(module, name, with_checks(value, checks))
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "hooks", {name: guarded(name, hook, self.file) for name, hook in own.items()})
        object.__setattr__(self, "traits", _traits(module, own, path, self.file))
        object.__setattr__(self, "name", self.called or path.stem)


def _module(path: Path, file: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"policy.file: got {file}; expected a Python file with a function `victim(m, f)`")
    spec = importlib.util.spec_from_file_location(f"rgpu_user_policy_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"policy.file: {file} does not import: {type(error).__name__}: {error}") from None
    return module


def _traits(module: ModuleType, hooks: dict[str, Any], path: Path, file: str) -> Traits:
    """The file's traits with what its hooks imply."""
    traits = getattr(module, "TRAITS", Traits())
    if not isinstance(traits, Traits):
        raise InputError(f"policy.file: {file}: got TRAITS = {traits!r}; expected TRAITS = Traits(...); correct it")
    said = _said(path)
    for hook, (name, value, why) in IMPLIED.items():
        if hook not in hooks or getattr(traits, name) == value or (hook == "admit" and traits.bound):
            continue
        if name in said:
            raise InputError(
                f"policy.file: {file}: got Traits({name}={not value}) and a hook `{hook}`; expected {name}={value}, "
                f"because {why}; remove {name}={not value} or the hook"
            )
        traits = replace(traits, staging=True) if name == "staging" else replace(traits, demand=False)
    return traits


def _said(path: Path) -> set[str]:
    """Fields that the file's `TRAITS = Traits(...)` names, by keyword or by place."""
    names = [f.name for f in fields(Traits)]
    said: set[str] = set()
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "TRAITS" for t in targets):
                said = {k.arg for k in node.value.keywords if k.arg} | set(names[: len(node.value.args)])
    return said
