"""A user's policy in one plain Python file: hooks by name, run by the same decision loop, uncompiled."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rgpu.errors import InputError
from rgpu.policies.loop import DEFAULTS
from rgpu.policies.policy import Traits


@dataclass(frozen=True)
class Plain:
    """Loads `file`: functions named like the loop's hooks (at least `victim`), and optionally `TRAITS = Traits(...)`.

    Slow (about 0.1 to 0.3 million accesses a second) but exact: the loop is the same code.
    """

    file: str
    traits: Traits = field(init=False)
    hooks: dict[str, Any] = field(init=False)
    name: str = field(init=False)
    run: ClassVar[None] = None

    def __post_init__(self) -> None:
        path = Path(self.file)
        if not path.is_file():
            raise InputError(f"policy.file: got {self.file}; expected a Python file with a function `victim(m, f)`")
        spec = importlib.util.spec_from_file_location(f"rgpu_user_policy_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise InputError(f"policy.file: {self.file} does not import: {type(error).__name__}: {error}") from None
        hooks = {n: getattr(module, n) for n in (*DEFAULTS, "victim") if callable(getattr(module, n, None))}
        if "victim" not in hooks:
            raise InputError(
                f"policy.file: {self.file} has no function `victim(m, f)`; expected one that returns a slot"
            )
        object.__setattr__(self, "hooks", hooks)
        object.__setattr__(self, "traits", getattr(module, "TRAITS", Traits()))
        object.__setattr__(self, "name", path.stem)
