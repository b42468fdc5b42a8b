"""The frame around every command: Hydra main, one JSON document as last line of stdout, one line for a user's mistake.

A command is a module `experiments/<name>.py` with a config `conf/<name>.yaml` (`defaults: [base, ..., _self_]`):

    @command("replay")
    def run(cfg: DictConfig) -> dict[str, Any]: ...

    if __name__ == "__main__":
        run.main()

`run(cfg)` stays an ordinary call; `run.main()` reads `sys.argv`. A result whose list `failed` is not empty ends with exit
code 1. The first line of the module's docstring is its help.
"""

import contextlib
import errno
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rgpu.errors import InputError
from rgpu.experiments.mistakes import check_types, explain, one_line, quoted

DEFECT, USER, INTERRUPTED = 1, 2, 130  # exit codes


@dataclass(frozen=True)
class Command:
    """A command: call it with a config, or `main()` it from a command line."""

    name: str
    body: Callable[[DictConfig], dict[str, Any]]

    def __call__(self, cfg: DictConfig) -> dict[str, Any]:
        return self.body(cfg)

    @property
    def description(self) -> str:
        module = sys.modules.get(self.body.__module__)
        return ((module and module.__doc__) or "").strip()

    def main(self) -> None:
        """Run with `sys.argv`; exits 2 on a user's mistake, 130 when interrupted."""
        arguments = self._arguments()
        if arguments.help:
            print(f"rgpu {self.name}: {self.description}\n", flush=True)
        name = arguments.config_name or self.name
        entry = hydra.main(version_base="1.3", config_path="pkg://rgpu.conf", config_name=self.name)(self._job)
        try:
            with _full_errors():
                entry()
        except KeyboardInterrupt:
            self._stop("interrupted; run the same command again to continue", INTERRUPTED)
        except (HydraException, OmegaConfBaseException) as error:
            line = explain(error, name, arguments)
            if line is None:
                raise
            self._stop(line)

    def _arguments(self) -> Namespace:
        parser = get_args_parser()
        parser.error = self._stop  # type: ignore[assignment, method-assign]
        arguments: Namespace = parser.parse_args()
        if not arguments.multirun:  # several runs are told apart by commas, so there a text needs its own quotes
            sys.argv[1:] = [quoted(part) if part in arguments.overrides else part for part in sys.argv[1:]]
            arguments.overrides = [quoted(line) for line in arguments.overrides]
        return arguments

    def _job(self, cfg: DictConfig) -> None:
        # SystemExit passes through Hydra untouched, where an exception would add a line of Hydra's own.
        try:
            job = HydraConfig.get()
            check_types(cfg, str(job.job.config_name), job.overrides.task)
            missing = sorted(OmegaConf.missing_keys(cfg))
            if missing:
                raise InputError(f"no value for {missing[0]}; give {missing[0]}=...")
            result = self.body(cfg)
            print(json.dumps(to_plain(result)), flush=True)
            if failed := result.get("failed"):
                self._stop(
                    f"these checks failed: {', '.join(map(str, failed))}; this is a defect, please report it", DEFECT
                )
        except KeyboardInterrupt:
            self._stop("interrupted; run the same command again to continue", INTERRUPTED)
        except Exception as error:
            line = _line(error, self.name)
            if line is None:
                raise
            self._stop(line)

    def _stop(self, line: str, code: int = USER) -> NoReturn:
        sys.stderr.write(f"rgpu {self.name}: {one_line(line)}\n")
        raise SystemExit(code)


def command(name: str) -> Callable[[Callable[[DictConfig], dict[str, Any]]], Command]:
    """Make `run(cfg) -> dict` the command `name`; its primary config is `conf/<name>.yaml`."""
    return lambda body: Command(name, body)


def to_plain(value: Any) -> Any:
    """JSON's own types only: numpy scalars and arrays, paths and configs converted, NaN and infinities to null."""
    if isinstance(value, DictConfig) or OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _line(error: Exception, name: str) -> str | None:
    if isinstance(error, InputError):
        return one_line(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
        where = getattr(error, "filename", None) or one_line(error)
        return f"no space left on device: {where}; free some or write elsewhere, then run the same command again"
    if isinstance(error, PermissionError | NotADirectoryError) or getattr(error, "errno", None) == errno.EROFS:
        return f"{one_line(error)}; give a path that can be read and written"
    return explain(error, name, Namespace(config_dir=None, overrides=[]))


@contextlib.contextmanager
def _full_errors() -> Iterator[None]:
    """Let Hydra pass exceptions on instead of printing them and leaving with code 1."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
