"""What a kernel does with its activations before it reads a weight: gate, order, factors of the decoder, group sums.

It costs about as much as one output row. Done inside the kernel it is the same few operations on eight lanes whatever
rows share a call, while torch rounds the end of a vector or of a thread's share in another way than its middle.

Legend: M rows of activations, K columns of the matrix, G groups of a row (rounded up to whole vectors).
"""

from rgpu.kernels.cpu.decode import Decoder
from rgpu.kernels.cpu.emit import F32, LANES, Emitter, Value
from rgpu.kernels.cpu.matrix import Matrix, Reader, padded_groups
from rgpu.types import Gate

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # of ln(2); LN2_HIGH has so few bits that n * LN2_HIGH is exact
ROUNDER = 1.5 * 2.0**23  # added to a small number, it leaves the nearest integer in the lower bits
TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
TWICE_ROOT = 1.5957691216057308  # 2 * sqrt(2 / pi), of gelu's tanh form
LARGEST = 87.0  # exp of it, and of its negative, are normal float32 numbers


def ready_numbers(matrix: Matrix, count: int) -> int:
    """float32 numbers that `make_ready` writes for `count` rows."""
    return count * (matrix.cols + padded_groups(matrix))


def make_ready(
    reader: Reader, decoder: Decoder, gate: Gate | None, count: int, x: Value, x_rows: Value, ready: Value
) -> int:
    """Writes x times the decoder's factors as [K / 8, M, 8] to `ready`, then the sums of x over groups as [M, G]; returns
    the byte at which the sums begin. Row m of x is row x_rows[m] (int32 [M]): [K], or with `gate` [2K], gate and up in
    turn. Loops, not unrolled: it is little of the work and would be much of the code."""
    emit, matrix, block = reader.emit, reader.matrix, decoder.block
    sums, padded = 4 * count * matrix.cols, padded_groups(matrix)
    if decoder.subtracts:
        with emit.loop(0, count * padded, LANES) as place:
            emit.store(emit.constant(0.0), ready, emit.add(sums, emit.mul(place, 4)))
    with emit.loop(0, count, 1) as m, emit.loop(0, matrix.cols, block) as column:
        start = emit.mul(emit.number(x_rows, emit.mul(m, 4)), 4 * matrix.cols * (2 if gate else 1))
        part = emit.constant(0.0)
        for v, factor in enumerate(decoder.factors):
            at, end = emit.add(column, LANES * v), LANES * (v + 1)
            some = _read(reader, gate, x, start, at)
            vectors = emit.add(emit.mul(at, count), emit.mul(m, LANES))
            emit.store(emit.times(some, factor), ready, emit.mul(vectors, 4))
            part = emit.plus(part, some)
            if decoder.subtracts and (end % matrix.group == 0 or end == block):
                group = emit.add(emit.div(at, matrix.group), emit.mul(m, padded))
                place = emit.add(sums, emit.mul(group, 4))
                old = emit.load(F32, ready, place, lanes=0)
                emit.store(emit.ir.fadd(old, emit.sum(part)), ready, place)
                part = emit.constant(0.0)
    return sums


def gated(emit: Emitter, gate: Gate, g: Value, u: Value) -> Value:
    """h of eight lanes: all three kinds are g * sigmoid(a) * (u or u + 1), since 1 + tanh(z) = 2 * sigmoid(2z)."""
    if gate.limit > 0:
        g, u = emit.at_most(g, gate.limit), emit.no_less(emit.at_most(u, gate.limit), -gate.limit)
    a = g
    if gate.kind == "gpt_oss":
        a, u = emit.times(g, gate.alpha), emit.plus(u, 1.0)
    elif gate.kind == "gelu_tanh":
        cubic = emit.fma(emit.times(g, g), emit.constant(0.044715), emit.constant(1.0))
        a = emit.times(emit.times(g, cubic), TWICE_ROOT)
    return emit.times(emit.over(g, emit.plus(_exp(emit, emit.times(a, -1.0)), 1.0)), u)


def _exp(emit: Emitter, x: Value) -> Value:
    """exp(x) to about one last place, x taken to lie within +-LARGEST: 2**n * exp(r) with |r| below ln(2) / 2."""
    x = emit.no_less(emit.at_most(x, LARGEST), -LARGEST)
    shifted = emit.plus(emit.times(x, LOG2_E), ROUNDER)
    n = emit.plus(shifted, -ROUNDER)
    r = emit.fma(n, emit.constant(-LN2_LOW), emit.fma(n, emit.constant(-LN2_HIGH), x))
    value = emit.constant(TAYLOR[0])
    for term in TAYLOR[1:]:
        value = emit.fma(value, r, emit.constant(term))
    exponent = emit.left(emit.bits(shifted), 23)  # n alone is left of the bits
    return emit.times(value, emit.as_floats(emit.ir.add(exponent, emit.bits(emit.constant(1.0)))))


def _read(reader: Reader, gate: Gate | None, x: Value, start: Value, column: Value) -> Value:
    """Eight neighbouring columns of a row of activations that begins at the byte `start`."""
    emit = reader.emit
    if gate is not None:
        at = emit.add(start, emit.mul(column, 8))
        a, b = (emit.load(F32, x, emit.add(at, 4 * LANES * half)) for half in (0, 1))
        return gated(emit, gate, emit.every_other(a, b, 0), emit.every_other(a, b, 1))
    if reader.matrix.paired and reader.matrix.has("order"):
        places = [emit.number(reader.slot, reader.at("order", 0, emit.add(column, lane))) for lane in range(LANES)]
        return emit.gather(x, start, places)
    return emit.load(F32, x, emit.add(start, emit.mul(column, 4)))
