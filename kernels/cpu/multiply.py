"""The kernel: rows of activations times the rows of a stored matrix, decoded on the fly, one file for every format.

For each output row the scales are decoded once into float32; then the columns are walked in spans of up to 64. A span's
codes are decoded once and used for every row of activations; each group's products are added up in an accumulator of
eight lanes and scaled into the row's total. The order of additions depends on the matrix alone: not on how many rows of
activations share a call, nor on which output rows a thread computes.

Legend: M rows of activations (1..TILE), N rows and K columns of the matrix, G columns of a group.
"""

from functools import cache

from rgpu.kernels.cpu.activations import make_ready
from rgpu.kernels.cpu.decode import Decoder, Scales, decoder_of
from rgpu.kernels.cpu.emit import F32, LANES, Emitter, Value
from rgpu.kernels.cpu.machine import Compiled, compiled
from rgpu.kernels.cpu.matrix import Matrix, Reader, padded_groups
from rgpu.types import Gate

NAME = "multiply"
TILE = 4  # most rows of activations a call takes: more totals do not fit sixteen registers
AHEAD = 2048  # bytes of weights asked for ahead of use


@cache
def kernel(matrix: Matrix, count: int, gate: Gate | None) -> Compiled:
    """The compiled `source`, made at first use (about a tenth of a second)."""
    return compiled(source(matrix, count, gate), NAME, 6, 2)


def source(matrix: Matrix, count: int, gate: Gate | None) -> str:
    """LLVM module of multiply(slot, x, x_rows, y, y_rows, ready, first, last) for `count` rows of activations.

    `slot` the expert's buffer. Row m of the activations is row x_rows[m] of `x`, float32 [K], or with `gate` [2K], gate
    and up in turn, joined before use. Its products with rows first..last of the matrix, plus the bias where there is one,
    are written to the same columns of row y_rows[m] of `y`, float32 [N]. Both lists are int32 [M]. `ready`: room for
    `ready_numbers` float32."""
    emit, decoder, span = Emitter(NAME, 6, 2), decoder_of(matrix.format), span_of(matrix)
    slot, x, x_rows, y, y_rows, ready, first, last = emit.arguments
    reader = Reader(emit, matrix, slot)
    ends = [emit.mul(emit.number(y_rows, 4 * m), 4 * matrix.rows) for m in range(count)]
    sums = make_ready(reader, decoder, gate, count, x, x_rows, ready)
    scales = emit.variable(F32, count=padded_groups(matrix)) if decoder.scales else None
    with emit.loop(first, last, 1) as row:
        totals = [emit.zeros() for _ in range(count)]
        if decoder.scales:
            _prepare_scales(reader, decoder.scales, row, scales, ready, sums, totals)
        with emit.loop(0, matrix.cols, span) as column:
            _span(reader, decoder, row, scales, ready, column, totals)
        for total, end in zip(totals, ends, strict=True):
            value = emit.sum(emit.get(total))
            if matrix.has("bias"):
                value = emit.ir.fadd(value, emit.load(F32, slot, reader.at("bias", 0, row), lanes=0))
            emit.store(value, y, emit.add(end, emit.mul(row, 4)))
    return emit.finish()


def span_of(matrix: Matrix) -> int:
    """Columns of one turn: whole blocks, and whole groups or a whole fraction of one."""
    block, group = decoder_of(matrix.format).block, matrix.group
    spans = (64, 32, 16, 8)
    return next(s for s in spans if s % block == matrix.cols % s == 0 and (s % group == 0 or group % s == 0))


def _prepare_scales(
    reader: Reader, decode: Scales, row: Value, scales: Value, ready: Value, sums: int, totals: list[Value]
) -> None:
    """Scales of the row into `scales`; totals become what its groups subtract."""
    emit, padded = reader.emit, padded_groups(reader.matrix)

    def some(first: Value, lanes: int) -> None:
        scale, least = decode(reader, row, first, lanes)
        emit.store(emit.padded(scale), scales, emit.mul(first, 4))
        if least is not None:
            lost = emit.times(emit.padded(least), -1.0)
            for m, total in enumerate(totals):
                of_x = emit.load(F32, ready, emit.add(sums, emit.mul(emit.add(first, m * padded), 4)))
                emit.set(total, emit.fma(lost, of_x, emit.get(total)))

    whole, rest = divmod(-(-reader.matrix.cols // reader.matrix.group), LANES)
    with emit.loop(0, whole * LANES, LANES) as first:
        some(first, LANES)
    if rest:
        some(emit.add(whole * LANES, 0), rest)


def _span(
    reader: Reader, decoder: Decoder, row: Value, scales: Value, ready: Value, column: Value, totals: list[Value]
) -> None:
    """Adds the products of one span of columns to the totals."""
    emit, matrix, span, count = reader.emit, reader.matrix, span_of(reader.matrix), len(totals)
    begin = emit.add(reader.at("q", row, 0), emit.div(emit.mul(column, matrix.word_bits), 8))
    for line in range(0, span * matrix.word_bits // 8, 64):
        emit.prefetch(reader.slot, emit.add(begin, AHEAD + line))
    sums: list[Value | None] = [None] * count
    for start in range(0, span, decoder.block):
        codes = decoder.codes(reader, row, emit.div(emit.add(column, start), decoder.block))
        for v, code in enumerate(codes):
            at = emit.mul(emit.add(column, start + LANES * v), 4 * count)
            for m, old in enumerate(sums):
                some_x = emit.load(F32, ready, emit.add(at, 4 * LANES * m))
                sums[m] = emit.times(code, some_x) if old is None else emit.fma(code, some_x, old)
            end = start + LANES * (v + 1)
            if end % matrix.group == 0 or end == span:
                _close(emit, totals, sums, _scale(emit, matrix, scales, emit.add(column, end - 1)))
                sums = [None] * count


def _scale(emit: Emitter, matrix: Matrix, scales: Value, column: Value) -> Value:
    """The scale of the group that `column` belongs to, in every lane; 1 where the format has none."""
    if scales is None:
        return emit.constant(1.0)
    return emit.splat(emit.load(F32, scales, emit.mul(emit.div(column, matrix.group), 4), lanes=0))


def _close(emit: Emitter, totals: list[Value], sums: list[Value | None], scale: Value) -> None:
    for total, part in zip(totals, sums, strict=True):
        emit.set(total, emit.fma(part, scale, emit.get(total)))
