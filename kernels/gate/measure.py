"""Compiling one kernel for one target without a GPU, and reading from its machine code what the gate judges.

Imports Triton: runs in a process of the version under test, where TRITON_INTERPRET is not set.
"""

import importlib
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rgpu.errors import InputError
from rgpu.kernels.gate import listings
from rgpu.kernels.gate.flow import Body, Listing, main_loop, reads
from rgpu.kernels.gate.shipped import Shipped, marked_lines
from rgpu.kernels.gate.targets import TARGETS, Target

_FLUSHING_AMD = re.compile(r"v_(mad|mac)(ak|mk)?_f32")
_FUSED = re.compile(r"[FH]FMA|v_(dual_|pk_)?(fma|mad|mac)")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one compilation gave.

    `registers` a lane; `stack` bytes a lane; `spills`: instructions (NVIDIA) or registers (AMD) spilled; `shared` bytes.
    `instructions` of the main loop in machine code, which stands for `unroll` iterations as written (0: cannot be told).
    `matrix`: the commonest opcode of matrix units in it, or "". `flushing`: how many of its instructions flush
    subnormals, `fused`: how many add a product that was not rounded. Loads of weights in the main loop: `weight_bytes` a
    lane reads by them, `narrow`: how many are under 128 bits, `marked`: whether they were told from others by a comment.
    `wide_bytes`: by all loads of 128 bits or more.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    unroll: float
    matrix: str
    flushing: int
    fused: int
    weight_bytes: int
    narrow: int
    marked: bool
    wide_bytes: int


def compiled(entry: Shipped, target: Target) -> Any:
    """Triton's compiled kernel. Errors: `InputError` for arguments that the entry does not describe; the compiler's."""
    kernel = getattr(importlib.import_module(entry.module), entry.kernel)
    while hasattr(kernel, "fn") and not hasattr(kernel, "arg_names"):
        kernel = kernel.fn
    names = list(kernel.arg_names)
    defaults = {p.name: p.default for p in kernel.params if p.has_default and p.name not in entry.types}
    constants = {**defaults, **entry.constants}
    unknown = sorted((set(constants) | set(entry.types)) - set(names))
    missing = [name for name in names if name not in constants and name not in entry.types]
    if unknown or missing:
        raise InputError(f"{entry.kernel}: got no type or constant for {missing} and no argument named {unknown}")
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in constants and (entry.types[name].startswith("*") or name.startswith("stride"))
    }
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else entry.types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attrs,
    )
    options = {**entry.options, "num_warps": entry.num_warps, "num_stages": entry.num_stages}
    return triton.compile(source, target=GPUTarget(target.backend, target.arch, target.lanes), options=options)


def measure(entry: Shipped, target_name: str, root: Path, keep: str = "") -> Measured:
    """Compiles `entry` and reads its listings; `keep`: where to leave them ("": nowhere)."""
    target = TARGETS[target_name]
    kernel = compiled(entry, target)
    texts = {name: kernel.asm[name] for name in ("ttgir", "ptx", "amdgcn") if name in kernel.asm}
    if target.backend == "cuda":
        resources, texts["sass"] = (_disassembled(kernel.asm["cubin"], what) for what in ("-res-usage", "-sass"))
        machine, upper = listings.sass(texts["sass"]), listings.ptx(texts["ptx"])
        used = re.search(r"REG:(\d+) STACK:(\d+)", resources)
        if used is None or not machine.code:
            raise ValueError(f"cuobjdump said nothing of {entry.kernel}: {resources[:200]}")
        registers, stack = int(used[1]), int(used[2])
        spills = sum(line.opcode.startswith(("STL", "LDL")) for line in machine.code)
    else:
        machine = upper = listings.amdgcn(texts["amdgcn"])
        registers, stack, spills = (
            int(re.search(rf"\.{key}:\s+(\d+)", texts["amdgcn"])[1])  # type: ignore[index]
            for key in ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        )
    if keep:
        _leave(texts, Path(keep), f"{entry.name.replace('/', '_')}.{target_name}.{triton.__version__}")
    marked = marked_lines(entry, root)
    body, upper_body = main_loop(machine), main_loop(upper, marked)
    is_marked = any(reads(upper.code[at], marked) for at in upper_body.at)
    weights = [upper.code[at].load_bytes for at in upper_body.at if is_marked and reads(upper.code[at], marked)]
    unroll = _unroll_above(entry, target_name, sum(weights)) * _unroll_below(machine, body, upper, upper_body)
    matrix = Counter(re.findall(target.matrix, "\n".join(machine.code[at].opcode for at in body.at)))
    return Measured(
        registers=registers, stack=stack, spills=spills, shared=int(kernel.metadata.shared), instructions=len(body.at),
        unroll=unroll, matrix=matrix.most_common(1)[0][0] if matrix else "",
        flushing=_flushing([machine.code[at].opcode for at in body.at], texts.get("amdgcn", "")),
        fused=sum(_FUSED.match(machine.code[at].opcode) is not None for at in body.at),
        weight_bytes=sum(weights), narrow=sum(width < 16 for width in weights), marked=is_marked,
        wide_bytes=sum(upper.code[at].load_bytes for at in upper_body.at if upper.code[at].load_bytes >= 16),
    )  # fmt: skip


def _unroll_above(entry: Shipped, target: str, weight_bytes: int) -> float:
    """Iterations that one pass of the loop holds before ptxas: weights it loads, over those of one as written."""
    expected = entry.bytes_a_lane(target)
    return round(weight_bytes / expected, 3) if expected else 0


def _unroll_below(machine: Listing, body: Body, upper: Listing, upper_body: Body) -> int:
    """How often ptxas unrolled the loop of PTX: the bytes loaded in one pass, over those of the PTX."""
    if not upper_body.loops:
        return 1
    loads, upper_loads = (
        sum(listing.code[at].load_bytes for at in where.at) for listing, where in ((machine, body), (upper, upper_body))
    )
    return max(1, round(loads / upper_loads)) if upper_loads else 1


def _flushing(opcodes: list[str], assembly: str) -> int:
    """Instructions that flush float32 subnormals; on AMD all do where the kernel's mode says so."""
    if not assembly:
        return sum(".FTZ" in opcode for opcode in opcodes)
    mode = re.search(r"\.amdhsa_float_denorm_mode_32\s+(\d)", assembly)
    if mode is None or mode[1] != "3":
        return len(opcodes)
    return sum(_FLUSHING_AMD.match(opcode) is not None for opcode in opcodes)


def _disassembled(cubin: bytes, what: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, what, file.name], check=True, capture_output=True, text=True).stdout


def _leave(texts: dict[str, str], folder: Path, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in texts.items():
        (folder / f"{stem}.{kind}").write_text(text)
