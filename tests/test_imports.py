"""Who may import whom: one table, held by reading every import, those in functions and under TYPE_CHECKING included."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = ("rgpu.types", "rgpu.errors", "rgpu.contracts")
LIGHT = (
    *("rgpu.policies", "rgpu.planning", "rgpu.traces", "rgpu.replay", "rgpu.results"),
    *("rgpu.memory.residency", "rgpu.transfer.virtual"),
)
HEAVY = ("rgpu.quant", "rgpu.hardware", "rgpu.checkpoint", "rgpu.store", "rgpu.memory", "rgpu.transfer")
RUNTIME = ("rgpu.runtime", "rgpu.traces.recorder")
ARRAYS = {"numpy", "numba", "pandas", "pyarrow", "safetensors", "tqdm"}


@dataclass(frozen=True)
class Row:
    """What a package may import: prefixes within rgpu, other packages at import, and others inside functions."""

    ours: tuple[str, ...]
    others: set[str]
    lazily: set[str] = field(default_factory=set)
    never: tuple[str, ...] = ()


TABLE: dict[tuple[str, ...], Row] = {  # the longest matching prefix decides
    ("rgpu",): Row((), set()),
    ("rgpu.cli",): Row(("rgpu",), set(), never=("rgpu.experiments", "rgpu.predictors", "rgpu.kernels")),
    BASE: Row(BASE, {"numpy"}),
    LIGHT: Row((*BASE, *LIGHT), ARRAYS, lazily={"torch", "scipy"}, never=("rgpu.traces.recorder",)),
    HEAVY: Row((*BASE, *LIGHT, *HEAVY), ARRAYS | {"torch"}, never=("rgpu.traces.recorder",)),
    RUNTIME: Row((*BASE, *LIGHT, *HEAVY, *RUNTIME), ARRAYS | {"torch", "transformers"}),
    ("rgpu.kernels",): Row(
        ("rgpu.types", "rgpu.errors", "rgpu.quant", "rgpu.kernels"), {"numpy", "numba", "torch", "triton", "llvmlite"}
    ),
    ("rgpu.predictors",): Row(
        (*BASE, "rgpu.traces", "rgpu.predictors"),
        {"numpy", "torch", "sklearn", "safetensors", "tqdm"},
        never=("rgpu.traces.recorder",),
    ),
}


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in prefixes)


def row_of(module: str) -> Row:
    fits = [(len(p), row) for prefixes, row in TABLE.items() for p in prefixes if within(module, (p,))]
    return max(fits, key=lambda fit: fit[0])[1]


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, bool, int]]:
    """(module, at import, line) of every import; a function's body and `if TYPE_CHECKING:` do not run at import."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool, int]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_import, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (above, node.module) if part)
            # `from rgpu.traces import recorder` names a module as much as `import rgpu.traces.recorder`
            names = [f"{source}.{alias.name}" for alias in node.names] if within(source, ("rgpu",)) else [source]
            yield from ((name, at_import, node.lineno) for name in names)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import and not lazy and not typing)

    yield from walk(tree, True)


def faults(source: str, module: str, *, package: str | None = None) -> list[str]:
    row, found = row_of(module), []
    tree = ast.parse(source)
    for name, at_import, line in imports(tree, package or module.rpartition(".")[0]):
        top = name.partition(".")[0]
        if top == "rgpu":
            allowed = within(name, row.ours) and not within(name, row.never)
            allowed |= name in ("rgpu", "rgpu.__version__")
        else:
            allowed = top in sys.stdlib_module_names or top in row.others or (not at_import and top in row.lazily)
        if not allowed:
            found.append(f"{module}:{line} imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg == "cfg":
            found.append(f"{module}:{node.lineno} takes a cfg; only experiments see one")
    return found


def modules() -> list[tuple[str, Path]]:
    files = [p for p in (ROOT / "rgpu").rglob("*.py") if not any(q.is_symlink() for q in p.parents)]
    files += [p for folder in ("kernels", "predictors") for p in (ROOT / folder).rglob("*.py")]
    named = []
    for path in sorted(files):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "rgpu" else ("rgpu", *parts)
        named.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return named


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_follow_the_table(module: str, path: Path) -> None:
    package = module if path.name == "__init__.py" else None
    assert faults(path.read_text(), module, package=package) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rgpu.policies.lru", "import torch"),
        ("rgpu.policies.lru", "from rgpu.store.host import Store"),
        ("rgpu.policies.lru", "def f():\n    from rgpu.runtime import session"),
        (
            "rgpu.replay.engine",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rgpu.experiments.sweep",
        ),
        ("rgpu.traces.storage", "from rgpu.traces import recorder"),
        ("rgpu.traces.storage", "from .recorder import Recorder"),
        ("rgpu.store.disk", "import transformers"),
        ("rgpu.runtime.session", "from rgpu.predictors import popularity"),
        ("rgpu.predictors.linear", "from rgpu.replay.engine import replay"),
        ("rgpu.replay.engine", "def replay(cfg): ..."),
        ("rgpu.types", "import pandas"),
    ],
)
def test_the_guard_sees_a_forbidden_import(module: str, source: str) -> None:
    assert faults(source, module)


def test_the_guard_lets_torch_into_a_function_of_a_light_package() -> None:
    assert faults("def f():\n    import torch", "rgpu.results.rows") == []


def test_light_packages_load_without_torch() -> None:
    light = [m for m, _ in modules() if within(m, (*BASE, *LIGHT, "rgpu.cli")) and not within(m, RUNTIME)]
    code = (
        "import importlib, sys\n"
        f"for name in ['rgpu', *{light!r}]: importlib.import_module(name)\n"
        "heavy = {'torch', 'triton', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
