"""`Shipped`: one kernel in one configuration that users get, as the compile gate must know it; and where they are listed.

A kernel module exports `SHIPPED: tuple[Shipped, ...]`, or a function `shipped()` that returns it. The source line that
loads weights ends in the comment `# weights`: the gate then knows which loads must be wide, and finds from them how often
the compilers unrolled the main loop. Importing the module must need no GPU.
"""

import ast
import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rgpu.errors import InputError
from rgpu.kernels.gate.targets import TARGETS

WANTS = ("vector_loads", "mma", "subnormals", "rounded")


@dataclass(frozen=True, slots=True)
class Shipped:
    """One configuration of one kernel.

    `name`: unique, such as "decode_gate_up/int4-g128/bf16". `module`, `kernel`: where the `triton.jit` function is.
    `types`: each argument that is no constant, as Triton spells it ("*u8", "*bf16", "i64"); `constants`: the others.
    Pointers, and integers whose name starts with "stride", are promised to be multiples of 16.
    `weights`: how many one program handles in one iteration of its main loop as written (0: count no instructions), and
    `bits`: how many of each weight's bits the lines marked `# weights` load (0: unknown, so unrolling stays unseen).
    `wants`: "vector_loads": weights come in loads of 128 bits; "mma": the main loop uses matrix units; "subnormals": no
    float32 arithmetic of the main loop flushes subnormals; "rounded": it adds no product before it is rounded.
    `max_registers` a lane, on NVIDIA targets. `options`: further options of the compiler. Errors: `InputError` for a
    target or a want that does not exist.
    """

    name: str
    module: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, object]
    num_warps: int
    num_stages: int
    weights: int
    wants: tuple[str, ...] = ()
    max_registers: int = 255
    targets: tuple[str, ...] = tuple(TARGETS)
    bits: float = 0
    options: dict[str, object] = field(default_factory=dict)

    def bytes_a_lane(self, target: str) -> float:
        """Bytes of weights that a lane should load in one iteration of the main loop as written; 0: unknown."""
        return self.weights * self.bits / 8 / (TARGETS[target].lanes * self.num_warps)

    def __post_init__(self) -> None:
        for given, known, what in ((self.targets, tuple(TARGETS), "target"), (self.wants, WANTS, "want")):
            for one in given:
                if one not in known:
                    raise InputError(f"{self.name}: got {what} {one!r}; expected some of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry, the module that lists it and the hash of everything its machine code comes from."""

    entry: Shipped
    where: str
    source: str


def listed(module: str) -> tuple[Shipped, ...]:
    """The entries of one module. Errors: `InputError` for a module without any list."""
    loaded = importlib.import_module(module)
    found = getattr(loaded, "SHIPPED", None)
    found = loaded.shipped() if found is None and hasattr(loaded, "shipped") else found
    if found is None:
        raise InputError(f"{module}: got neither SHIPPED nor shipped(); expected a list of kernels")
    return tuple(found)


def collect(modules: tuple[str, ...], root: Path) -> list[Listed]:
    """Every entry of `modules`. Errors: `InputError` for a name that comes twice."""
    found: dict[str, Listed] = {}
    for module in modules:
        for entry in listed(module):
            if entry.name in found:
                raise InputError(
                    f"{entry.name}: got it from {found[entry.name].where} and {module}; expected unique names"
                )
            found[entry.name] = Listed(entry, module, source_hash(entry, root))
    return list(found.values())


def listing_modules(root: Path) -> tuple[str, ...]:
    """The kernel modules under `root` that export a list, found without importing them."""
    return tuple(
        f"rgpu.kernels.{path.stem}" for path in sorted((root / "kernels").glob("*.py")) if exports(path.read_text())
    )


def exports(source: str) -> bool:
    """Whether a module's source defines SHIPPED or shipped() at its top."""
    for node in ast.parse(source).body:
        named = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "SHIPPED" for target in named):
            return True
        if isinstance(node, ast.FunctionDef) and node.name == "shipped":
            return True
    return False


def path_of(module: str, root: Path) -> Path:
    """The file of `rgpu.kernels.x`, which is `kernels/x.py`, or of a module of the tests."""
    return root / Path(*module.removeprefix("rgpu.").split(".")).with_suffix(".py")


def sources(module: str, root: Path) -> dict[str, str]:
    """Source of the module and of every module of rgpu.kernels it imports, directly or not, the gate's own left out."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and path_of(name, root).exists():
            found[name] = path_of(name, root).read_text()
            waiting += [n for n in imported(found[name]) if n.startswith("rgpu.kernels.") and ".gate" not in n]
    return found


def imported(source: str) -> Iterator[str]:
    """Modules that a source names in imports; `from a import b` names a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def device_source(source: str) -> str:
    """What of a module becomes machine code: its device functions, decorated with something of triton's, and the constants
    they name. Launchers, references and lists of entries may change without a kernel changing."""
    body = ast.parse(source).body
    device = [
        node
        for node in body
        if isinstance(node, ast.FunctionDef) and any("triton." in ast.unparse(d) for d in node.decorator_list)
    ]
    named = {n.id for node in device for n in ast.walk(node) if isinstance(n, ast.Name)}
    constants = [
        node
        for node in body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in named for t in node.targets)
    ]
    return "\n".join(ast.get_source_segment(source, node) or "" for node in (*constants, *device))


def source_hash(entry: Shipped, root: Path) -> str:
    """Hash over all device functions that the kernel can reach and its configuration: what may change its machine code."""
    config = repr((entry.kernel, entry.types, entry.constants, entry.num_warps, entry.num_stages, entry.options))
    texts = (device_source(source) for _, source in sorted(sources(entry.module, root).items()))
    text = "\0".join((config, *(text for text in texts if text)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def marked_lines(entry: Shipped, root: Path) -> frozenset[tuple[str, int]]:
    """(file name, line) of every statement that holds the comment `# weights` in the kernel's sources."""
    found: set[tuple[str, int]] = set()
    for module, source in sources(entry.module, root).items():
        marked = {n for n, line in enumerate(source.splitlines(), 1) if line.rstrip().endswith("# weights")}
        for node in ast.walk(ast.parse(source)) if marked else ():
            if isinstance(node, ast.Assign | ast.AugAssign | ast.Return | ast.Expr):
                span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                if marked.intersection(span):
                    found.update((path_of(module, root).name, line) for line in span)
    return frozenset(found)
