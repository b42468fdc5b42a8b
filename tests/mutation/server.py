"""A child in which the tests are collected and run once, unchanged, and which then tries one mutant after another.

A mutant is tried in a fork of that child: everything is imported, compiled and warm already, and a mutant is but another
`__code__` for one function of `rgpu.policies`, which is plain Python here (see `sandbox`). Most take a few hundredths of a
second. Code that ran while the tests were collected cannot be tried so: its results are there already.
"""

import contextlib
import functools
import gc
import io
import multiprocessing
import os
import resource
import select
import signal
import time
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest

from tests.mutation.sandbox import ARGUMENTS, plain_policies

COLLECTED = ""  # context of the lines that ran while the tests were collected


class Server:
    """`base`: per test that passes its seconds and the lines it ran, tests left out, lines run by collecting.

    Lines: {test: {file: [line]}}. A test that takes more than `limit_s` seconds of processor time is left out.
    """

    def __init__(self, tests: Sequence[str], folder: Path, limit_s: float, tell: Callable[[str], None]) -> None:
        self._here, there = multiprocessing.Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._here.close()
            os.environ["OMP_NUM_THREADS"] = "1"  # a fork has none of the threads that torch would wait for
            try:
                _serve(there, tests, folder, limit_s, tell)
            finally:
                os._exit(0)
        there.close()
        try:
            self.base: dict[str, Any] = self._here.recv()
        except EOFError:
            raise RuntimeError("the tests could not be collected and run on the unchanged files") from None

    def killed_by(self, path: Path, source: str, nodes: Sequence[str], limit_s: int) -> str:
        """The first of the tests `nodes` that fails with `path` as `source`; "" if none does."""
        self._here.send((str(path), source, list(nodes), limit_s))
        return str(self._here.recv())

    def close(self) -> None:
        self._here.close()
        os.waitpid(self._pid, 0)


def _serve(
    pipe: Connection, tests: Sequence[str], folder: Path, limit_s: float, tell: Callable[[str], None]
) -> None:  # fmt: skip
    plain_policies()
    phases = [p for p in hypothesis.Phase if p not in (hypothesis.Phase.shrink, hypothesis.Phase.explain)]
    hypothesis.settings.register_profile("mutation", phases=phases, derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    cov = coverage.Coverage(data_file=None, include=[f"{folder}/*"], config_file=False)
    cov.start()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*ARGUMENTS, "-m", "not slow", *tests], plugins=[_Plugin(pipe, cov, limit_s, tell)])
    if code:
        tell(said.getvalue())


class _Plugin:
    """Takes the place of pytest's loop over the tests."""

    def __init__(self, pipe: Connection, cov: coverage.Coverage, limit_s: float, tell: Callable[[str], None]) -> None:
        self.pipe, self.cov, self.limit_s, self.tell = pipe, cov, limit_s, tell
        self.failed: set[str] = set()
        self.functions: list[types.FunctionType] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_runtestloop(self, session: Any) -> bool:
        items = {item.nodeid: item for item in session.items}
        seconds = self._warm(items)
        self.cov.stop()
        lines: dict[str, dict[str, list[int]]] = {}
        data = self.cov.get_data()
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    lines.setdefault(context, {}).setdefault(file, []).append(line)
        collected = lines.pop(COLLECTED, {})
        for cached in [o for o in gc.get_objects() if type(o) is functools._lru_cache_wrapper]:
            if str(getattr(cached, "__module__", "")).startswith(("rgpu", "tests")):
                cached.cache_clear()
        self.functions = [o for o in gc.get_objects() if type(o) is types.FunctionType]  # before they are frozen
        gc.collect()
        gc.freeze()
        good = {n: s for n, s in seconds.items() if n not in self.failed}
        self.pipe.send({"seconds": good, "lines": {n: lines.get(n, {}) for n in good},
                        "left_out": sorted(self.failed), "collected": collected})  # fmt: skip
        while True:
            try:
                path, source, nodes, limit_s = self.pipe.recv()
            except EOFError:
                return True
            self.pipe.send(self._forked(Path(path), source, [items[n] for n in nodes], good, limit_s))

    def _warm(self, items: dict[str, Any]) -> dict[str, float]:
        """Every test once. -> seconds of processor time of each."""
        seconds, file = {}, ""
        for node, item in items.items():
            if node.partition("::")[0] != file:
                file = node.partition("::")[0]
                self.tell(f"running {file} on the unchanged files")
            self.cov.switch_context(node)
            begun = time.process_time()
            with _alarm(self.limit_s, _too_slow):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            seconds[node] = time.process_time() - begun
        return seconds

    def _forked(self, path: Path, source: str, items: list[Any], seconds: dict[str, float], limit_s: int) -> str:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            verdict = "died"
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 2))
                verdict = self._tried(path, source, items, seconds, writer)
            except BaseException as error:
                verdict = f"crash: {error!r}"[:300]
            finally:
                os.write(writer, verdict.encode() or b"\0")
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            hung = not select.select([pipe], [], [], limit_s)[
                0
            ]  # a lock that a thread of the parent held: no alarm helps
            if hung:
                os.kill(child, signal.SIGKILL)
            verdict = pipe.read().decode().strip("\0")
        _, status = os.waitpid(child, 0)
        return "crash: hung" if hung else f"died ({status})" if status else verdict

    def _tried(self, path: Path, source: str, items: list[Any], seconds: dict[str, float], writer: int) -> str:
        swap(path, source, self.functions)
        for item in items:

            def slow(*_: Any, node: str = item.nodeid) -> None:
                os.write(writer, f"{node} (timeout)".encode())
                os._exit(0)

            self.failed.clear()
            with _alarm(0.3 + 4 * seconds[item.nodeid], slow):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if self.failed:
                return str(item.nodeid)
        return ""


def swap(path: Path, source: str, functions: Sequence[types.FunctionType]) -> None:
    """Give those of the functions that are from the file at `path` the code that `source` has for them."""
    new = {c.co_qualname: c for c in _codes(compile(source, str(path), "exec"))}
    for function in functions:
        code = function.__code__
        if code.co_filename == str(path) and code.co_qualname in new:
            function.__code__ = new[code.co_qualname]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


@contextlib.contextmanager
def _alarm(after_s: float, what: Callable[..., None]) -> Iterator[None]:
    """Calls `what` after so many seconds of processor time."""
    signal.signal(signal.SIGPROF, what)
    signal.setitimer(signal.ITIMER_PROF, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_slow(*_: Any) -> None:
    raise TimeoutError("too slow uncompiled")
