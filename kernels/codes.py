"""Device functions that turn stored codes into float32 numbers without a conversion instruction.

Integer codes are used where they lie: the bits of a field, masked and read as a float32, are the subnormal number
code * 2**(position - 149). The activation that meets it is multiplied by the opposite power of two beforehand, once for all
rows of a tile, so a weight costs one AND and one fused multiply-add, in full float32 precision. Small floats (e2m1, e4m3)
are moved to where a float32 keeps its sign, exponent and mantissa, which gives value * 2**-126 or value * 2**-120, exact
for their own subnormals too. Nothing on the way may flush subnormals: the compile gate looks for that.

A 32-bit word holds two neighbouring 16-bit words of `rgpu.quant.fields`, its even half (low bits) and its odd half. Fields
j of both belong to neighbouring columns.

Legend: N rows of a tile, W 32-bit words.
"""

import triton
import triton.language as tl

from rgpu.kernels.stored import get

_INTEGERS = ("int4", "int8", "q4_k", "q6_k")
# Products come out as 2**-61 of their size: far from both ends of float32 for any activation below 2**36. Beyond that they
# overflow, as an activation beyond 2**128 does, and give inf or NaN.
_LOWERED = 61


@triton.constexpr_function
def zero_of(M):
    """The code that stands for 0 where that is the same for the whole matrix, else 0."""
    symmetric = {"int4": 8.0, "int8": 128.0, "q6_k": 32.0}
    return 0.0 if "zero" in dict(M.at) else symmetric.get(M.format, 0.0)


@triton.constexpr_function
def has_offset(M):
    """Whether every group of columns has an offset of its own."""
    return M.format == "q4_k" or "zero" in dict(M.at)


@triton.constexpr_function
def raised(M):
    """What a sum of products is multiplied by at its end."""
    return 1.0 if M.format in ("nf4", "bf16") else 2.0**_LOWERED


@triton.constexpr_function
def lowered(M):
    """1 / `raised`."""
    return 1.0 if M.format in ("nf4", "bf16") else 2.0**-_LOWERED


@triton.constexpr_function
def lift(M, odd, j):
    """What an activation is multiplied by before it meets `raw` of field j in the even (0) or odd half."""
    if M.format in ("nf4", "bf16"):
        return 1.0
    if M.format in _INTEGERS:
        return 2.0 ** (149 - _LOWERED - (4 * odd + M.bits * j))
    return 2.0 ** ((120 if M.format == "fp8_block" else 126) - _LOWERED)


@triton.constexpr_function
def lift_high(odd, j):
    """`lift` of `raw_high`, whose codes count sixteen times."""
    return 2.0 ** (149 - _LOWERED + 4 - (4 * odd + 2 * j))


@triton.jit
def raw(W, lut_ptr, ODD: tl.constexpr, J: tl.constexpr, M: tl.constexpr):
    """float32 [N, W] whose product with `lift` is the code of field J in a half of `W`, times 2**-61 (see `raised`)."""
    FORMAT: tl.constexpr = get(M, "format")
    BITS: tl.constexpr = get(M, "bits")
    if FORMAT == "bf16":
        return (W & -65536 if ODD else W << 16).to(tl.float32, bitcast=True)
    elif FORMAT == "nf4":
        return tl.load(lut_ptr + ((W >> (16 * ODD + 4 * J)) & 15))
    elif FORMAT == "mxfp4" or FORMAT == "nvfp4":
        # sign to bit 31, exponent and mantissa to bits 24..22
        moved = (W << (28 - 16 * ODD - 4 * J)) >> 6
        return (moved & -2118123520).to(tl.float32, bitcast=True)
    elif FORMAT == "fp8_block":
        moved = (W << (24 - 16 * ODD - 8 * J)) >> 4  # sign to bit 31, exponent and mantissa to bits 26..20
        return (moved & -2014314496).to(tl.float32, bitcast=True)
    else:
        # The odd half is moved down to bits 4..19: a float32 is subnormal only up to bit 22.
        low: tl.constexpr = ((1 << BITS) - 1) << (BITS * J)
        return ((W >> 12) & (low << 4) if ODD else W & low).to(tl.float32, bitcast=True)


@triton.jit
def raw_high(H, ODD: tl.constexpr, J: tl.constexpr):
    """The same for the two high bits of a q6_k code: field J of 2-bit words, which goes with `lift_high`."""
    return ((H >> 12) & (48 << (2 * J)) if ODD else H & (3 << (2 * J))).to(tl.float32, bitcast=True)
