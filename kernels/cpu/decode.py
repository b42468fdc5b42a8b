"""How each storage format turns its words into numbers on eight lanes: one `Decoder` a format.

y = sum over groups of scale * (sum of code * x) - least * (sum of x): codes are multiplied as they are and each group is
scaled once. A code is left where it lies in its word where that only multiplies it by a power of two; the activations
are divided by it beforehand, exactly (`factors`). Small floats become float16 by shifts, times a power of two likewise.

Legend: N rows, K columns, G columns of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rgpu.errors import InputError
from rgpu.kernels.cpu.emit import I16, LANES, Emitter, Value
from rgpu.kernels.cpu.machine import is_x86
from rgpu.kernels.cpu.matrix import Reader
from rgpu.quant.nf4 import NF4

Scales = Callable[[Reader, Value, Value, int], tuple[Value, Value | None]]


@dataclass(frozen=True, slots=True)
class Decoder:
    """`block`: columns decoded at once. `factors[v]`: what x is multiplied with where it meets vector v of a block.

    `codes(reader, row, block)`: a block's float32 vectors of eight neighbouring columns, `len(factors)` of them.
    `scales(reader, row, first, lanes)`: scale of each group of the row from the `first` on, and what each group subtracts
    (least * scale) or None. `subtracts`: whether it does."""

    block: int
    factors: tuple[float, ...]
    codes: Callable[[Reader, Value, Value], list[Value]]
    scales: Scales | None = None
    subtracts: bool = False


def decoder_of(fmt: str) -> Decoder:
    """The decoder of the format of that name; `InputError` where there is none."""
    if fmt not in DECODERS:
        raise InputError(f"CPU experts: got the storage format {fmt!r}; expected one of {', '.join(DECODERS)}")
    return DECODERS[fmt]


def _fields(emit: Emitter, words: Value, bits: int) -> list[Value]:
    """float32 of every field of int16 words, times 2**(bits * j) for field j."""
    wide, field = emit.wide(words), (1 << bits) - 1
    return [emit.floats(emit.mask(wide, field << shift)) for shift in range(0, 16, bits)]


def _factors(bits: int) -> tuple[float, ...]:
    """What undoes the powers of two of `_fields`."""
    return tuple(2.0**-shift for shift in range(0, 16, bits))


def _nibbles(reader: Reader, row: Value, block: Value) -> list[Value]:
    return _fields(reader.emit, reader.words("q", row, reader.emit.mul(block, LANES)), 4)


def _bytes(reader: Reader, row: Value, block: Value) -> list[Value]:
    return _fields(reader.emit, reader.words("q", row, reader.emit.mul(block, LANES)), 8)


def _bfloats(reader: Reader, row: Value, block: Value) -> list[Value]:
    emit = reader.emit
    return [emit.as_floats(emit.left(emit.wide(reader.words("q", row, emit.mul(block, LANES))), 16))]


def _e2m1(reader: Reader, row: Value, block: Value) -> list[Value]:
    """Sign, exponent and mantissa bit moved to their places in a float16: the number times 2**-14, subnormals included."""
    emit = reader.emit
    words = reader.words("q", row, emit.mul(block, LANES))
    tops = [emit.left(words, 12 - shift) for shift in range(0, 16, 4)]  # the code in the top four bits
    return [emit.as_halves(emit.mask(emit.right(top, 3, signed=True), 0x8E00 - 0x10000)) for top in tops]


def _e4m3_halves(emit: Emitter, tops: Value) -> Value:
    """float32 of e4m3 codes in the upper bytes of int16 words, times 2**-8: the same move."""
    return emit.as_halves(emit.mask(emit.right(tops, 1, signed=True), 0xBF80 - 0x10000))


def _e4m3(reader: Reader, row: Value, block: Value) -> list[Value]:
    words = reader.words("q", row, reader.emit.mul(block, LANES))
    return [_e4m3_halves(reader.emit, reader.emit.left(words, shift)) for shift in (8, 0)]


def _nf4(reader: Reader, row: Value, block: Value) -> list[Value]:
    emit = reader.emit
    wide = emit.wide(reader.words("q", row, emit.mul(block, LANES)))
    look_up = _permuted if is_x86() else _chosen
    return [look_up(emit, wide, shift) for shift in range(0, 16, 4)]


def _permuted(emit: Emitter, wide: Value, shift: int) -> Value:
    """NF4[code]: both halves of the table by the lower three bits (others are ignored), then one of them by the fourth."""
    index = emit.right(wide, shift)
    upper = emit.negative(emit.left(wide, 28 - shift))
    return emit.choose(upper, emit.permute(NF4[8:], index), emit.permute(NF4[:8], index))


def _chosen(emit: Emitter, wide: Value, shift: int) -> Value:
    """NF4[code] without an instruction of one processor family: a choice for every bit, the lowest first."""
    numbers = [emit.constant(number) for number in NF4]
    for bit in range(4):
        odd = emit.negative(emit.left(wide, 31 - shift - bit))
        numbers = [emit.choose(odd, b, a) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    return numbers[0]


def _six(reader: Reader, row: Value, block: Value) -> list[Value]:
    """Two blocks of low nibbles; the high bits of the same 64 columns are moved to sit above them."""
    emit, codes = reader.emit, []
    high = emit.wide(reader.words("high", row, emit.mul(block, LANES)))
    for half in (0, 1):
        low = emit.wide(reader.words("q", row, emit.mul(emit.add(emit.mul(block, 2), half), LANES)))
        for field in range(4):
            place, now = 4 * field, 8 * half + 2 * field
            moved = emit.left(high, place + 4 - now) if place + 4 > now else emit.right(high, now - place - 4)
            both = emit.either(emit.mask(low, 15 << place), emit.mask(moved, 3 << (place + 4)))
            codes.append(emit.floats(both))
    return codes


def _int4_scales(reader: Reader, row: Value, first: Value, lanes: int) -> tuple[Value, Value | None]:
    scale = reader.numbers("scale", row, first, lanes)
    zero = reader.numbers("zero", row, first, lanes) if reader.matrix.has("zero") else 8.0
    return scale, reader.emit.times(scale, zero)


def _int8_scales(reader: Reader, row: Value, first: Value, lanes: int) -> tuple[Value, Value | None]:
    scale = reader.numbers("scale", row, first, lanes)
    return scale, reader.emit.times(scale, 128.0)


def _block_scales(reader: Reader, row: Value, first: Value, lanes: int) -> tuple[Value, Value | None]:
    """Blocks of 128 rows of gate, of up, or of down."""
    emit = reader.emit
    if reader.matrix.paired:
        return reader.numbers("scale", emit.add(emit.mul(emit.div(row, 256), 2), emit.mod(row, 2)), first, lanes), None
    return reader.numbers("scale", emit.div(row, 128), first, lanes), None


def _plain_scales(reader: Reader, row: Value, first: Value, lanes: int) -> tuple[Value, Value | None]:
    return reader.numbers("scale", row, first, lanes), None


def _e8m0_scales(reader: Reader, row: Value, first: Value, lanes: int) -> tuple[Value, Value | None]:
    """The code is a float32's exponent; code 0 is the subnormal 2**-127."""
    emit = reader.emit
    bits = emit.left(emit.wide(reader.bytes("scale", row, first, lanes)), 23)
    return emit.as_floats(emit.at_least(bits, 1 << 22)), None


def _nvfp4_scales(reader: Reader, row: Value, first: Value, lanes: int) -> tuple[Value, Value | None]:
    emit = reader.emit
    codes = emit.left(emit.wide(reader.bytes("scale", row, first, lanes), I16), 8)
    factor = reader.one("global", 0, emit.mod(row, 2) if reader.matrix.paired else 0, lanes)
    return emit.times(emit.times(_e4m3_halves(emit, codes), 256.0), factor), None


def _q4_k_scales(reader: Reader, row: Value, first: Value, lanes: int) -> tuple[Value, Value | None]:
    emit, block = reader.emit, reader.emit.div(first, 8)
    scale, least = (reader.numbers(name, row, first, lanes) for name in ("scale", "min"))
    d, dmin = (reader.one(name, row, block, lanes) for name in ("d", "dmin"))
    return emit.times(d, scale), emit.times(dmin, least)


def _q6_k_scales(reader: Reader, row: Value, first: Value, lanes: int) -> tuple[Value, Value | None]:
    emit = reader.emit
    d = reader.one("d", row, emit.div(first, 16), lanes)
    scale = emit.times(d, reader.numbers("scale", row, first, lanes))
    return scale, emit.times(scale, 32.0)


DECODERS = {
    "bf16": Decoder(8, (1.0,), _bfloats),
    "int8": Decoder(16, _factors(8), _bytes, _int8_scales, subtracts=True),
    "int4": Decoder(32, _factors(4), _nibbles, _int4_scales, subtracts=True),
    "fp8_block": Decoder(16, (2.0**8,) * 2, _e4m3, _block_scales),
    "mxfp4": Decoder(32, (2.0**14,) * 4, _e2m1, _e8m0_scales),
    "nvfp4": Decoder(32, (2.0**14,) * 4, _e2m1, _nvfp4_scales),
    "nf4": Decoder(32, (1.0,) * 4, _nf4, _plain_scales),
    "q4_k": Decoder(32, _factors(4), _nibbles, _q4_k_scales, subtracts=True),
    "q6_k": Decoder(64, _factors(4) * 2, _six, _q6_k_scales, subtracts=True),
    "q8_0": Decoder(16, _factors(8), _bytes, _int8_scales, subtracts=True),
}
