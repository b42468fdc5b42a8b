"""Where a number came from: commit, versions, hardware, configuration. No path of this machine ever leaves it."""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from rgpu.errors import InputError

PACKAGES = (
    "rgpu",
    "torch",
    "transformers",
    "numpy",
    "numba",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "safetensors",
    "matplotlib",
)
_ABSOLUTE = re.compile(r"^([\w.@+~-]+=)?(/[^\s/][^\n]*|[A-Za-z]:\\.+)$")


def portable(value: Any) -> Any:
    """`value` as JSON data in which every absolute path is relative to the working folder, or just its last name."""
    if isinstance(value, Mapping):
        return {str(k): portable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [portable(v) for v in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        found = _ABSOLUTE.match(value)
        return (found[1] or "") + _relative(found[2]) if found else value
    if isinstance(value, bool | int | float) or value is None:
        return value
    return value.item() if hasattr(value, "item") else str(value)


def config_hash(config: Any) -> str:
    """Twelve hex digits of sha256 over the portable configuration with sorted keys."""
    text = json.dumps(portable(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def manifest(config: Any) -> dict[str, Any]:
    """What identifies a run, as JSON data: commit, versions, python, cpu, cores, date (UTC), config and its hash."""
    return {
        "commit": _commit(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": _cores(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_hash": config_hash(config),
        "config": portable(config),
    }


def stamp(config: Any, *, seed: int = 0) -> dict[str, Any]:
    """The provenance columns of a result row, from the same facts as `manifest`."""
    facts = manifest(config)
    versions = " ".join([f"python={facts['python']}", *(f"{n}={v}" for n, v in facts["versions"].items())])
    return {
        "seed": seed,
        "config_hash": facts["config_hash"],
        "commit": facts["commit"],
        "versions": versions,
        "hardware": f"{facts['cpu']}, {facts['cores']} cores",
        "date": facts["date"],
    }


def write_manifest(path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write `facts` (made portable) as JSON, atomically."""
    write_atomic(path, (json.dumps(portable(facts), indent=2, sort_keys=True) + "\n").encode())


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename. A full disk: `InputError`, nothing left."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = f"cannot write {path.name}: got '{error.strerror}', expected a writable folder with space"
        raise InputError(f"{reason}; free some or choose another") from error
    finally:
        temporary.unlink(missing_ok=True)


def _relative(text: str) -> str:
    path, here = PurePath(text), PurePath(Path.cwd())
    if path.is_relative_to(here):
        return str(path.relative_to(here))
    shared = PurePath(os.environ.get("RGPU_SHARED", here.parent / "shared"))
    return str(PurePath("shared") / path.relative_to(shared)) if path.is_relative_to(shared) else path.name


@cache
def _commit() -> str:
    """The commit of the checkout this package runs from, with "-dirty" where files differ; "unknown" outside one."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        tracked = _git(root, "ls-files", "--error-unmatch", "rgpu/results/provenance.py")
        return head + ("-dirty" if tracked and _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
