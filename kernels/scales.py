"""Device functions for the scale and the offset of the columns of a block, as float32.

A weight is (code - zero) * scale + offset, with `zero_of` the matrix as zero.

Legend: N rows of a tile, B blocks of eight 16-bit words.
"""

import triton
import triton.language as tl

from rgpu.kernels.stored import at, fields, get, has, parts_of_block


@triton.jit
def e4m3(code):
    """float32 of e4m3fn bits in an int32."""
    bits = ((code & 128) << 24) | ((code & 127) << 20)
    return bits.to(tl.float32, bitcast=True) * 2.0**120


@triton.jit
def e8m0(code):
    """float32 of an e8m0 exponent in an int32; 0 is 2**-127, a subnormal."""
    return tl.where(code == 0, 0x400000, code << 23).to(tl.float32, bitcast=True)


@triton.jit
def _value(base, index, ok, NAME: tl.constexpr, KIND: tl.constexpr, M: tl.constexpr, MASKED: tl.constexpr):
    """Elements `index` of array NAME in the slot at `base`, in their own type (0 where not `ok`)."""
    start = base + at(M, NAME)
    if KIND == "fp16":
        pointer = start.to(tl.pointer_type(tl.float16))
    elif KIND == "bf16":
        pointer = start.to(tl.pointer_type(tl.bfloat16))
    elif KIND == "fp32":
        pointer = start.to(tl.pointer_type(tl.float32))
    elif KIND == "i8":
        pointer = start.to(tl.pointer_type(tl.int8))
    else:
        pointer = start
    if MASKED:
        return tl.load(pointer + index, mask=ok, other=0)
    else:
        return tl.load(pointer + index)


@triton.jit
def scale_index(row, block, M: tl.constexpr, PART: tl.constexpr):
    """Index of the scale of `block` (its half PART) of `row`."""
    COLS: tl.constexpr = get(M, "cols")
    GROUP: tl.constexpr = get(M, "group")
    WIDTH: tl.constexpr = fields(M) * 8
    GROUPS: tl.constexpr = (COLS + GROUP - 1) // GROUP
    if get(M, "format") == "fp8_block":
        line = (row // 256) * 2 + row % 2 if get(M, "paired") else row // 128
        return line * GROUPS + (block * WIDTH) // GROUP
    elif parts_of_block(M) == 2:
        return row * GROUPS + block * 2 + PART
    else:
        return row * GROUPS + (block * WIDTH) // GROUP


@triton.jit
def scale_and_offset(base, row, block, ok, M: tl.constexpr, PART: tl.constexpr, MASKED: tl.constexpr):
    """(scale [N, B], offset [N, B] or a scalar 0) of the columns in half PART of the blocks; 0 where not `ok`."""
    FORMAT: tl.constexpr = get(M, "format")
    SCALE: tl.constexpr = get(M, "scale")
    index = scale_index(row, block, M, PART)
    if FORMAT == "q4_k" or FORMAT == "q6_k":
        wide = row * (get(M, "cols") // 256) + block // 8
        d = _value(base, wide, ok, "d", "fp16", M, MASKED).to(tl.float32)
        scale = d * _value(base, index, ok, "scale", SCALE, M, MASKED).to(tl.float32)
        if FORMAT == "q4_k":
            dmin = _value(base, wide, ok, "dmin", "fp16", M, MASKED).to(tl.float32)
            return scale, -dmin * _value(base, index, ok, "min", "u8", M, MASKED).to(tl.float32)
        else:
            return scale, 0.0
    elif FORMAT == "bf16":
        return tl.where(ok, 1.0, 0.0), 0.0
    else:
        stored = _value(base, index, ok, "scale", SCALE, M, MASKED)
        if FORMAT == "mxfp4":
            return e8m0(stored.to(tl.int32)), 0.0
        elif FORMAT == "nvfp4":
            return e4m3(stored.to(tl.int32)), 0.0
        elif has(M, "zero"):
            scale = stored.to(tl.float32)
            return scale, -scale * _value(base, index, ok, "zero", "u8", M, MASKED).to(tl.float32)
        else:
            return stored.to(tl.float32), 0.0


@triton.jit
def row_factor(base, row, M: tl.constexpr):
    """What the sum of a row is multiplied by at its end besides scales (NVFP4's second scale), shaped as `row`."""
    if has(M, "global"):
        factors = (base + at(M, "global")).to(tl.pointer_type(tl.float32))
        return tl.load(factors + (row % 2 if get(M, "paired") else row * 0))
    else:
        return tl.full(row.shape, 1.0, tl.float32)
