"""From the text of an LLVM module to a function that ctypes calls, through the compiler that numba brings along."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import binding as llvm

from rgpu.errors import InputError

NEEDED = ("avx2", "fma", "f16c")  # of an x86 processor; without them LLVM would call library functions lane by lane


@dataclass(frozen=True, slots=True)
class Compiled:
    """`call` takes addresses and numbers, and lets other Python threads run meanwhile; `engine` owns its machine code."""

    call: Callable[..., None]
    engine: Any


def is_x86() -> bool:
    """Whether this processor is of the x86-64 family."""
    return bool(llvm.get_process_triple().startswith("x86_64"))


def compiled(text: str, name: str, pointers: int, numbers: int) -> Compiled:
    """The function `name` of the module `text`, which takes that many addresses and then int64 numbers."""
    module, target = _optimised(text)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * pointers, *[ctypes.c_int64] * numbers)
    call = kind(engine.get_function_address(name))
    call.engine = engine  # type: ignore[attr-defined]  # the code lives as long as anyone can call it
    return Compiled(call, engine)


def assembly(text: str) -> str:
    """The machine code that `compiled` makes, to be read."""
    module, target = _optimised(text)
    return str(target.emit_assembly(module))


def _optimised(text: str) -> tuple[Any, Any]:
    """The module after LLVM's passes, and the machine it is for, which an engine takes over."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    missing = [name for name in NEEDED if not features.get(name)] if is_x86() else []
    if missing:
        raise InputError(
            f"CPU experts: got a processor without {', '.join(missing)}; expected {', '.join(NEEDED)}; use TorchCompute"
        )
    module = llvm.parse_assembly(text)
    module.verify()
    machine = llvm.Target.from_triple(llvm.get_process_triple())
    target = machine.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # The kernels are written as vectors and unrolled already.
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return module, target
