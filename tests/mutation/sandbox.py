"""Runs tests in a forked child in which `rgpu.policies` is plain Python and one of its files is replaced.

Compiling a mutant would cost ten seconds, running it uncompiled milliseconds; the loop and the hooks are the same source
either way (tests/contracts hold both equal). Everything outside `rgpu.policies` stays compiled and cached.
"""

import contextlib
import importlib.abc
import importlib.util
import io
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import pytest

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ["-q", "-p", "no:cacheprovider", "--no-header", "--rootdir", str(ROOT)]
PLAIN = "rgpu.policies"


class _Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module in a source given as text."""

    def __init__(self, module: str, source: str, path: Path) -> None:
        self.module, self.source, self.path = module, source, path

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def plain_policies() -> None:
    """Make `njit` leave functions of `rgpu.policies` as they are, with themselves as their `py_func`."""
    real = numba.njit

    def njit(function: Any = None, **options: Any) -> Any:
        if function is None:
            return lambda given: njit(given, **options)
        if str(getattr(function, "__module__", "")).startswith(PLAIN):
            function.py_func = function
            return function
        return real(function, **options)

    numba.njit = njit


class _Recorder:
    """pytest plugin: which tests failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(f"collecting {report.nodeid}")


def run_tests(nodes: Sequence[str], module: str, source: str, path: Path) -> dict[str, str]:
    """Inside a child: run the tests, `module` replaced by `source`. -> failed: the first that fails, or ""."""
    plain_policies()
    sys.meta_path.insert(0, _Replaced(module, source, path))
    recorder = _Recorder()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main([*ARGUMENTS, "-x", *nodes], plugins=[recorder])
    return {"failed": recorder.failed[0] if recorder.failed else "" if code in (0, 5) else f"exit code {int(code)}"}


def in_child(body: Callable[[], dict[str, str]], cpu_s: int) -> dict[str, str]:
    """What `body` returns in a forked child; {"failed": "timeout"} where it takes more than `cpu_s` of processor time.

    A child that something else on the machine ended (SIGTERM, SIGKILL) says nothing of the tests and is started again.
    """
    for _ in range(3):
        found = _once(body, cpu_s)
        if found["failed"] not in ("died (15)", "died (9)"):
            break
    return found


def _once(body: Callable[[], dict[str, str]], cpu_s: int) -> dict[str, str]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))
            os.environ["OMP_NUM_THREADS"] = "1"
            found = body()
        except BaseException:
            found = {"failed": "crash: " + traceback.format_exc(limit=-1).replace("\n", " ")[-300:]}
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if data:
        return dict(json.loads(data))
    return {
        "failed": "timeout" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU else f"died ({status})"
    }
