"""`Emitter`: the few words in which the CPU kernels are written, each one instruction of LLVM on eight lanes.

Eight float32 are one AVX register and two NEON registers. Kernels say which operations happen and in which order; nothing
is left to an auto-vectoriser, so speed does not hang on whether a loop was recognised and results repeat bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

LANES = 8
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32, POINTER = ir.HalfType(), ir.FloatType(), ir.IntType(8).as_pointer()
SIZES = {I8: 1, I16: 2, I32: 4, F16: 2, F32: 4}  # bytes
Value = Any  # a value of the function under construction; llvmlite has no types for mypy


def vector(kind: ir.Type, lanes: int = LANES) -> ir.VectorType:
    """The type of `lanes` numbers of `kind`."""
    return ir.VectorType(kind, lanes)


def splat_of(kind: ir.Type, value: float) -> Value:
    """A constant: `value` of a scalar type, or in every lane of a vector type."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, value)


class Emitter:
    """One function `name(pointers..., numbers...)` without a result; `arguments` are its values in that order."""

    def __init__(self, name: str, pointers: int, numbers: int) -> None:
        self.module = ir.Module(name)
        kind = ir.FunctionType(ir.VoidType(), [POINTER] * pointers + [I64] * numbers)
        self.function = ir.Function(self.module, kind, name)
        for argument in self.function.args[:pointers]:
            argument.add_attribute("noalias")
        self.arguments: Sequence[Value] = self.function.args
        self.entry = self.function.append_basic_block("entry")
        self.ir = ir.IRBuilder(self.function.append_basic_block("body"))

    def finish(self) -> str:
        """The text of the module."""
        self.ir.ret_void()
        ir.IRBuilder(self.entry).branch(self.function.basic_blocks[1])
        return str(self.module)

    # Integers that address memory, int64; Python integers become constants.

    def add(self, a: Value, b: Value) -> Value:
        """a + b."""
        return self.ir.add(_long(a), _long(b))

    def mul(self, a: Value, b: Value) -> Value:
        """a * b."""
        return self.ir.mul(_long(a), _long(b))

    def div(self, a: Value, b: int) -> Value:
        """a / b rounded down, of non-negative numbers."""
        return self.ir.udiv(_long(a), _long(b))

    def mod(self, a: Value, b: int) -> Value:
        """a modulo b, of non-negative numbers."""
        return self.ir.urem(_long(a), _long(b))

    @contextmanager
    def loop(self, first: Value, last: Value, step: int) -> Iterator[Value]:
        """Runs the body for first, first + step, ... while less than last, and hands it the number."""
        counter = self.variable(I64, first)
        head, body, end = (self.function.append_basic_block(name) for name in ("head", "loop", "end"))
        self.ir.branch(head)
        self.ir.position_at_end(head)
        number = self.get(counter)
        self.ir.cbranch(self.ir.icmp_signed("<", number, _long(last)), body, end)
        self.ir.position_at_end(body)
        yield number
        self.set(counter, self.add(number, step))
        self.ir.branch(head)
        self.ir.position_at_end(end)

    # Variables live on the stack until LLVM moves them into registers.

    def variable(self, kind: ir.Type, value: Value | None = None, count: int = 1) -> Value:
        """Room for `count` numbers of `kind`; the first starts as `value`."""
        place = ir.IRBuilder(self.entry).alloca(kind, count)
        if count > 1:
            place.align = 64
        if value is not None:
            self.set(place, value if isinstance(value, ir.Value) else splat_of(kind, value))
        return place

    def zeros(self) -> Value:
        """A variable of eight float32, zero at this point of the program."""
        return self.variable(vector(F32), 0.0)

    def get(self, variable: Value) -> Value:
        """What the variable holds."""
        return self.ir.load(variable, typ=variable.allocated_type)

    def set(self, variable: Value, value: Value) -> None:
        """Puts `value` into the variable."""
        self.ir.store(value, variable)

    # Memory. `base` points to bytes and `at` counts bytes.

    def load(self, kind: ir.Type, base: Value, at: Value, *, lanes: int = LANES, align: int = 0) -> Value:
        """`lanes` numbers of `kind` (0: one scalar), aligned as one number is or to `align` bytes."""
        wanted = vector(kind, lanes) if lanes else kind
        loaded = self.ir.load(self.ir.bitcast(self._address(base, at), wanted.as_pointer()), typ=wanted)
        loaded.align = align or SIZES[kind]
        return loaded

    def number(self, base: Value, at: Value) -> Value:
        """One int32 as an integer that addresses memory."""
        return self.ir.sext(self.load(I32, base, at, lanes=0), I64)

    def gather(self, base: Value, start: Value, places: Sequence[Value]) -> Value:
        """The float32 numbers `places` after the byte `start`."""
        found = ir.Constant(vector(F32, len(places)), ir.Undefined)
        for lane, place in enumerate(places):
            one = self.load(F32, base, self.add(start, self.mul(place, 4)), lanes=0)
            found = self.ir.insert_element(found, one, I32(lane))
        return found

    def store(self, value: Value, base: Value, at: Value) -> None:
        """Writes float32 numbers."""
        self.ir.store(value, self.ir.bitcast(self._address(base, at), value.type.as_pointer())).align = 4

    def prefetch(self, base: Value, at: Value) -> None:
        """Asks for the cache line at `at`, to be read once; an address outside the buffer does no harm."""
        kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
        self._call("llvm.prefetch.p0", kind, [self._address(base, at), I32(0), I32(3), I32(1)])

    def _address(self, base: Value, at: Value) -> Value:
        return self.ir.gep(self.ir.bitcast(base, POINTER), [_long(at)], source_etype=I8)

    # Arithmetic on vectors; integers beside a vector stand in every lane.

    def mask(self, value: Value, bits: int) -> Value:
        """value & bits."""
        return self.ir.and_(value, splat_of(value.type, bits))

    def left(self, value: Value, count: int) -> Value:
        """value << count."""
        return self.ir.shl(value, splat_of(value.type, count)) if count else value

    def right(self, value: Value, count: int, *, signed: bool = False) -> Value:
        """value >> count; `signed`: the top bit is copied down."""
        shift = self.ir.ashr if signed else self.ir.lshr
        return shift(value, splat_of(value.type, count)) if count else value

    def wide(self, value: Value, kind: ir.Type = I32, *, signed: bool = False) -> Value:
        """Integers of a larger `kind` from smaller ones."""
        return (self.ir.sext if signed else self.ir.zext)(value, vector(kind, value.type.count))

    def floats(self, value: Value) -> Value:
        """float32 of int32, or of float16."""
        kind = vector(F32, value.type.count)
        return self.ir.fpext(value, kind) if value.type.element == F16 else self.ir.sitofp(value, kind)

    def as_halves(self, bits: Value) -> Value:
        """float32 of the float16 numbers that int16 `bits` are."""
        return self.floats(self.ir.bitcast(bits, vector(F16, bits.type.count)))

    def as_floats(self, bits: Value) -> Value:
        """The float32 numbers that int32 `bits` are."""
        return self.ir.bitcast(bits, vector(F32, bits.type.count))

    def either(self, a: Value, b: Value) -> Value:
        """a | b."""
        return self.ir.or_(a, b)

    def bits(self, value: Value) -> Value:
        """int32 of the bits of float32 numbers."""
        return self.ir.bitcast(value, vector(I32, value.type.count))

    def plus(self, a: Value, b: Value) -> Value:
        """a + b; a Python number b stands in every lane."""
        return self.ir.fadd(a, _like(a, b))

    def times(self, a: Value, b: Value) -> Value:
        """a * b; a Python number b stands in every lane."""
        return self.ir.fmul(a, _like(a, b))

    def over(self, a: Value, b: Value) -> Value:
        """a / b."""
        return self.ir.fdiv(a, b)

    def at_most(self, value: Value, bound: float) -> Value:
        """min(value, bound); NaN stays NaN."""
        return self.ir.select(self.ir.fcmp_ordered(">", value, _like(value, bound)), _like(value, bound), value)

    def no_less(self, value: Value, bound: float) -> Value:
        """max(value, bound); NaN stays NaN."""
        return self.ir.select(self.ir.fcmp_ordered("<", value, _like(value, bound)), _like(value, bound), value)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self._call(f"llvm.fma.v{a.type.count}f32", ir.FunctionType(a.type, [a.type] * 3), [a, b, c])

    def negative(self, value: Value) -> Value:
        """Lanes whose int32 is below zero."""
        return self.ir.icmp_signed("<", value, splat_of(value.type, 0))

    def at_least(self, value: Value, least: int) -> Value:
        """max(value, least) of int32 that are not negative."""
        bound = splat_of(value.type, least)
        return self.ir.select(self.ir.icmp_signed("<", value, bound), bound, value)

    def choose(self, where: Value, a: Value, b: Value) -> Value:
        """a where the lane is set, else b."""
        return self.ir.select(where, a, b)

    def permute(self, table: Sequence[float], index: Value) -> Value:
        """table[index & 7] of eight float32 by x86's own permutation of a register."""
        numbers = ir.Constant(vector(F32), [ir.Constant(F32, number) for number in table])
        kind = ir.FunctionType(vector(F32), [vector(F32), vector(I32)])
        return self._call("llvm.x86.avx2.permps", kind, [numbers, index])

    def constant(self, number: float) -> Value:
        """A float32 in every lane."""
        return splat_of(vector(F32), number)

    def splat(self, scalar: Value, lanes: int = LANES) -> Value:
        """The scalar in every lane."""
        one = self.ir.insert_element(ir.Constant(vector(scalar.type, lanes), ir.Undefined), scalar, I32(0))
        return self.ir.shuffle_vector(one, one, splat_of(vector(I32, lanes), 0))

    def padded(self, value: Value) -> Value:
        """Eight lanes: those of `value`, then zeros."""
        lanes = value.type.count
        if lanes == LANES:
            return value
        picks = [ir.Constant(I32, min(lane, lanes)) for lane in range(LANES)]
        return self.ir.shuffle_vector(value, splat_of(value.type, 0.0), ir.Constant(vector(I32), picks))

    def every_other(self, a: Value, b: Value, first: int) -> Value:
        """Of the sixteen lanes of a and b those numbered first, first + 2, ..."""
        picks = [ir.Constant(I32, first + 2 * lane) for lane in range(LANES)]
        return self.ir.shuffle_vector(a, b, ir.Constant(vector(I32), picks))

    def sum(self, value: Value) -> Value:
        """The eight lanes added up, always in the same tree."""
        for half in (4, 2, 1):
            low, high = (
                ir.Constant(vector(I32, half), [ir.Constant(I32, k + s) for k in range(half)]) for s in (0, half)
            )
            value = self.ir.fadd(self.ir.shuffle_vector(value, value, low), self.ir.shuffle_vector(value, value, high))
        return self.ir.extract_element(value, I32(0))

    def _call(self, name: str, kind: ir.FunctionType, arguments: Sequence[Value]) -> Value:
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.ir.call(function, arguments)


def _long(value: Value) -> Value:
    return value if isinstance(value, ir.Value) else ir.Constant(I64, value)


def _like(value: Value, other: Value) -> Value:
    return other if isinstance(other, ir.Value) else splat_of(value.type, other)
