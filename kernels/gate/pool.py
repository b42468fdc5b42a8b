"""Compiling many jobs in worker processes, each compilation bounded by a time limit."""

import importlib.metadata
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from rgpu.errors import InputError

START_S = 120  # a worker may take this long to import Triton on a busy machine


@dataclass(frozen=True, slots=True)
class Job:
    """One compilation: the entry `name` that module `where` lists, for a target, under a version of Triton.

    `keep`: folder for its listings ("": none).
    """

    where: str
    name: str
    target: str
    version: str
    keep: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a job: `values` as `measure.Measured` has them, or one line that says what failed."""

    values: dict[str, object]
    error: str = ""


def site_of(version: str) -> str:
    """The folder to put first on the path of a worker, "" where the environment's own Triton is this version.

    Errors: `InputError` where the version is not there.
    """
    beside = Path(sys.prefix) / f"triton-{version}"
    try:
        own = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        own = "none"
    if own == version:
        return ""
    if not (beside / "triton").is_dir():
        raise InputError(f"triton: got {own} installed and no {beside}; expected {version}; run make kernels-gate")
    return str(beside)


class Worker:
    """One process with one Triton. `ask` blocks; a worker that ran out of time or died is gone."""

    def __init__(self, version: str, root: Path, scratch: Path) -> None:
        self.version = version
        self.log = tempfile.TemporaryFile("w+", dir=scratch)  # noqa: SIM115  lives as long as the process
        # No setting of Triton leaks in from outside: TRITON_INTERPRET would make compilation fail, others change code.
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
        path = os.pathsep.join(part for part in (site_of(version), str(root), clean.get("PYTHONPATH", "")) if part)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rgpu.kernels.gate.worker", str(root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=root,
            start_new_session=True,  # so that ptxas is killed with it
            env={
                **clean, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(scratch / version), "OMP_NUM_THREADS": "1",
                "TRITON_DEFAULT_FP_FUSION": "1",  # the default until 3.9; from 3.10 on it is another
            },
        )  # fmt: skip
        started = self._line(START_S)
        if started.error or started.values.get("triton") != version:
            self.close()
            raise InputError(f"triton: got {started.error or started.values} from a worker; expected {version}")

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self.process.poll() is None

    def ask(self, job: Job, timeout_s: float) -> Answer:
        """The answer, or what went wrong; in that case the worker may be gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asdict(job)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self._dead()
        return self._line(timeout_s)

    def close(self) -> None:
        """Kills the process with its children."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None and not stream.closed:
                stream.close()

    def _line(self, timeout_s: float) -> Answer:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        if not ready:
            self.close()
            return Answer({}, f"timed out after {timeout_s:g} s")
        line = self.process.stdout.readline()
        if not line:
            return self._dead()
        values = json.loads(line)
        return Answer({}, str(values["error"])) if "error" in values else Answer(values)

    def _dead(self) -> Answer:
        code = self.process.wait()
        self.log.seek(0)
        said = [line.strip() for line in self.log if line.strip()]
        self.close()
        return Answer({}, f"the compiler died with {code}: {said[-1][:200] if said else 'no message'}")


def compile_all(
    jobs: Sequence[Job], root: Path, *, timeout_s: float, workers: int = 2, budget_s: float = float("inf")
) -> dict[Job, Answer]:
    """The answer to each job; those not begun within `budget_s` have none. Jobs run in their order, except that a worker
    finishes those of its version first. Errors: `InputError` for a version of Triton that is not there."""
    versions = list(dict.fromkeys(job.version for job in jobs))
    for version in versions:
        site_of(version)
    waiting, lock, deadline = deque(jobs), Lock(), time.monotonic() + budget_s
    answers: dict[Job, Answer] = {}

    def take(version: str) -> Job | None:
        with lock:
            job = next((job for job in waiting if job.version == version), None) or (waiting[0] if waiting else None)
            if job is not None:
                waiting.remove(job)
            return job

    def run(first: str, scratch: Path) -> None:
        worker: Worker | None = None
        try:
            while time.monotonic() < deadline and (job := take(worker.version if worker else first)):
                if worker is None or worker.version != job.version or not worker.alive:
                    if worker is not None:
                        worker.close()
                    worker = Worker(job.version, root, scratch)
                answers[job] = worker.ask(job, timeout_s)
        finally:
            if worker is not None:
                worker.close()

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(workers) as threads:
        running = [threads.submit(run, versions[i % len(versions)], Path(scratch)) for i in range(workers) if versions]
        try:
            for one in running:
                one.result()
        except BaseException:
            waiting.clear()  # an interrupt or a worker that does not start ends the others after their current job
            raise
    return answers
