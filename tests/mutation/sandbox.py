"""Runs tests in a forked child in which `rgpu.policies` is plain Python and one of its files may be replaced.

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
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import pytest

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--rootdir", str(ROOT)]
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


def _plain_policies() -> None:
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
    """pytest plugin: processor seconds of each test, which failed, and which functions of `rgpu.policies` each ran.

    While tracing, a test is stopped (and so fails) after `limit_s`.
    """

    def __init__(self, trace: bool, limit_s: float) -> None:
        self.trace, self.limit_s = trace, limit_s
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}
        self.ran: dict[str, list[list[str]]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        seen: set[tuple[str, str]] = set()
        begun = time.process_time()
        if self.trace:
            signal.signal(signal.SIGPROF, _too_slow)
            signal.setitimer(signal.ITIMER_PROF, self.limit_s)
            sys.setprofile(lambda frame, event, _: seen.add((frame.f_code.co_filename, frame.f_code.co_name)))
        try:
            yield
        finally:
            sys.setprofile(None)
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.seconds[item.nodeid] = time.process_time() - begun
        self.ran[item.nodeid] = sorted([f, n] for f, n in seen if "/rgpu/policies/" in f)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(f"collecting {report.nodeid}")


def _too_slow(*_: Any) -> None:
    raise TimeoutError("too slow uncompiled")


def run_tests(
    nodes: Sequence[str], *, module: str = "", source: str = "", path: Path = ROOT, trace: bool = False,
    limit_s: float = 60.0,
) -> dict[str, Any]:  # fmt: skip
    """Inside a child: run the tests, `module` replaced by `source`. -> failed (first node or ""), failures, seconds, ran.

    `trace`: go on after a failure, and record what each test runs.
    """
    _plain_policies()
    if module:
        sys.meta_path.insert(0, _Replaced(module, source, path))
    recorder = _Recorder(trace, limit_s)
    arguments = [a for a in ARGUMENTS if a != "-x"] if trace else ARGUMENTS
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main([*arguments, *nodes], plugins=[recorder])
    failed = recorder.failed[0] if recorder.failed else "" if code in (0, 5) else f"exit code {int(code)}"
    heavy = [n for n in sys.modules if not n.startswith(("rgpu", "tests", "_pytest", "pytest"))]
    return {
        "failed": failed, "failures": recorder.failed, "seconds": recorder.seconds, "ran": recorder.ran,
        "modules": heavy,
    }  # fmt: skip


def in_child(body: Callable[[], dict[str, Any]], cpu_s: int) -> dict[str, Any]:
    """What `body` returns in a forked child; {"failed": "timeout"} where it takes more than `cpu_s` of processor time.

    A child that something else on the machine ended (SIGTERM, SIGKILL) says nothing of the tests and is started again.
    """
    for _ in range(3):
        found = _once(body, cpu_s)
        if found["failed"] not in ("died (15)", "died (9)"):
            break
    return found


def _once(body: Callable[[], dict[str, Any]], cpu_s: int) -> dict[str, Any]:
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
