"""Device functions of the fast path for 4-bit integer codes: packed half-precision arithmetic in inline assembly.

A nibble in the low eight bits of a 16-bit half, masked and read as a float16, is the subnormal code * 2**-24 or
code * 2**-20: one AND makes two weights, one HFMA2 multiplies both. Activations are
scaled, block by block, by a power of two that puts the largest of a block's columns near 2**15, so that products are normal
numbers; four products of a half are summed in float16, everything after that in float32. About 2.3 instructions a weight on
sm90 where the float32 path takes 2.6 (kernels/gate/TABLE.md). Rounding: activations to 11 bits, sums of four products to 11
bits; `nibble_dot_ref` does every one of them.

Runs on NVIDIA alone: neither the interpreter nor an AMD card has these instructions, they take the float32 path.
"""

import torch
import triton
import triton.language as tl

_NIBBLE_DOT = tl.constexpr("""
{
    .reg .b32 t, f0, f1, f2, f3, a;
    .reg .b16 lo, hi;
    .reg .f32 even, odd;
    and.b32 f0, $1, 0x000f000f;
    and.b32 f1, $1, 0x00f000f0;
    shr.u32 t, $1, 8;
    and.b32 f2, t, 0x000f000f;
    and.b32 f3, t, 0x00f000f0;
    mul.rn.f16x2 a, f0, $2;
    fma.rn.f16x2 a, f1, $3, a;
    fma.rn.f16x2 a, f2, $4, a;
    fma.rn.f16x2 a, f3, $5, a;
    mov.b32 {lo, hi}, a;
    cvt.f32.f16 even, lo;
    cvt.f32.f16 odd, hi;
    add.f32 $0, even, odd;
}
""")


@triton.jit
def half_scales(largest):
    """(s, 1/s): the power of two that takes `largest` (float32, not negative) to [2**14, 2**15), within float32's range."""
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 16)
    up = tl.minimum(268 - exponent, 253)
    return (up << 23).to(tl.float32, bitcast=True), ((254 - up) << 23).to(tl.float32, bitcast=True)


@triton.jit
def as_halves(even, odd, scale):
    """(int32 holding float16 even * scale in its low half and odd * scale in its high half, their float32 sum)."""
    low, high = (even * scale).to(tl.float16), (odd * scale).to(tl.float16)
    bits = (low.to(tl.int16, bitcast=True).to(tl.int32) & 65535) | (high.to(tl.int16, bitcast=True).to(tl.int32) << 16)
    return bits, low.to(tl.float32) + high.to(tl.float32)


@triton.jit
def nibble_dot(W, x0, x1, x2, x3):
    """float32: 2**-24 times the sum over both halves of fields 0 to 3 of `W` times the halves of `x0` to `x3`, where those
    for fields 1 and 3 were divided by 16."""
    return tl.inline_asm_elementwise(
        _NIBBLE_DOT, "=f,r,r,r,r,r", [W, x0, x1, x2, x3], dtype=tl.float32, is_pure=True, pack=1
    )


def nibble_dot_ref(codes_N8: torch.Tensor, x_8: torch.Tensor) -> torch.Tensor:
    """float64 [N]: what the fast path makes of eight 4-bit codes [N, 8] (columns 2j and 2j + 1 are field j) and eight
    activations float32 [8] with a block's largest among them, every rounding done as the instructions do it."""
    largest = max(float(x_8.abs().max()), 2.0**-111)
    scale = 2.0 ** (14 - int(torch.floor(torch.log2(torch.tensor(largest, dtype=torch.float64)))))
    total = torch.zeros(codes_N8.shape[0], 2, dtype=torch.float64)
    for j in range(4):
        shrunk = scale / 16 if j % 2 else scale
        x_2 = (x_8[2 * j : 2 * j + 2] * shrunk).half().double()
        codes = codes_N8[:, 2 * j : 2 * j + 2].double() * 2.0 ** (-20 if j % 2 else -24)
        total = (total + codes * x_2).half().double()  # a fused multiply-add rounds once
    return total.sum(1) * 2.0**24 / scale
