"""Device function `gemv_rows`: some rows of a stored matrix times one vector of activations, in float32.

One warp a program: every lane holds 16 bytes of each of R rows, the activations it loads serve all of them, and nothing
crosses lanes before the end. The 32 lanes lie over Q rows of B blocks, Q * B = 32: a short row needs fewer blocks.
Activations are loaded as [1, W], each lane its own, so that they are where the words of the tile are.

Legend: R rows a lane, Q rows side by side, B blocks of a row, W = 128 32-bit words over Q rows of B blocks, U = 32 blocks over
Q rows, J field of a word.
"""

import triton
import triton.language as tl

from rgpu.kernels.codes import has_offset, lift, lift_high, lowered, raised, raw, raw_high, zero_of
from rgpu.kernels.halfword import as_halves, half_scales, nibble_dot
from rgpu.kernels.scales import row_factor, scale_and_offset
from rgpu.kernels.stored import at, blocks, fields, get, has, parts_of_block


@triton.jit
def halves_position(column, M: tl.constexpr):
    """Where `column` of a vector lies once each block has its even columns first: what KIND "halves" reads."""
    WIDTH: tl.constexpr = fields(M) * 8
    inside = column % WIDTH
    return column - inside + (inside % 2) * (WIDTH // 2) + inside // 2


@triton.jit
def _pair(x_ptr, base, block, word, ok, M: tl.constexpr, J: tl.constexpr, KIND: tl.constexpr, MASKED: tl.constexpr):
    """(even, odd) float32 [1, W]: the activations of field J in both halves of each word; 0 where not `ok`."""
    WIDTH: tl.constexpr = fields(M) * 8
    if KIND == "halves":
        place = x_ptr + (block * WIDTH + 4 * J + word)
        if MASKED:
            return tl.load(place, mask=ok, other=0.0), tl.load(place + WIDTH // 2, mask=ok, other=0.0)
        else:
            return tl.load(place), tl.load(place + WIDTH // 2)
    else:
        column = block * WIDTH + 8 * J + 2 * word
        if KIND == "order":
            order = (base + at(M, "order")).to(tl.pointer_type(tl.int32)) + column
            even = tl.load(x_ptr + tl.load(order, mask=ok, other=0), mask=ok, other=0.0).to(tl.float32)
            odd = tl.load(x_ptr + tl.load(order + 1, mask=ok, other=0), mask=ok, other=0.0).to(tl.float32)
            return even, odd
        elif KIND == "fp32":
            even = tl.load(x_ptr + column, mask=ok, other=0.0)
            return even, tl.load(x_ptr + column + 1, mask=ok, other=0.0)
        else:
            pairs = x_ptr.to(tl.pointer_type(tl.int32)) + (block * (WIDTH // 2) + 4 * J + word)
            if MASKED:
                both = tl.load(pairs, mask=ok, other=0)
            else:
                both = tl.load(pairs)
            if KIND == "bf16":
                return (both << 16).to(tl.float32, bitcast=True), (both & -65536).to(tl.float32, bitcast=True)
            else:
                even = both.to(tl.int16).to(tl.float16, bitcast=True)
                return even.to(tl.float32), (both >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def gemv_rows(
    x_ptr, base, lut_ptr, first_row, M: tl.constexpr, KIND: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """float32 [R * 32 / B]: rows `first_row` and on of matrix M in the slot at `base`, times the activations at `x_ptr`.

    KIND: how activations lie: "bf16", "fp16", "fp32" in natural order, "order" through the matrix's column order, or
    "halves" (float32, see `halves_position`). FAST: by `rgpu.kernels.halfword`, 4-bit integer codes on NVIDIA only. Rows
    past the last give 0.
    """
    J: tl.constexpr = fields(M)
    NB: tl.constexpr = blocks(M)
    PARTS: tl.constexpr = parts_of_block(M)
    HIGH: tl.constexpr = has(M, "high")
    ROWS: tl.constexpr = get(M, "rows")
    Q: tl.constexpr = 32 // B
    MASKED: tl.constexpr = NB % B != 0 or ROWS % (R * Q) != 0
    word = tl.arange(0, 128)[None, :]
    unit = tl.arange(0, 32)[None, :]
    lane_block, inside = (word // 4) % B, word % 4
    row = first_row + tl.arange(0, R)[:, None] * Q + word // (4 * B)
    unit_row, block = first_row + tl.arange(0, R)[:, None] * Q + unit // B, unit % B
    words = (base + at(M, "q")).to(tl.pointer_type(tl.int32)) + (row.to(tl.int64) * (NB * 4) + word % (4 * B))
    if HIGH:
        highs = (base + at(M, "high")).to(tl.pointer_type(tl.int32)) + (row.to(tl.int64) * (NB * 2) + inside)
    acc = tl.zeros([R, 32], tl.float32)
    for first in range(0, NB, B):
        ok_word = lane_block < NB - first
        if MASKED:
            W = tl.load(words + first * 4, mask=(row < ROWS) & ok_word, other=0)  # weights
        else:
            W = tl.load(words + first * 4)  # weights
        if HIGH:
            H = tl.load(highs + ((first + lane_block) // 2) * 4, mask=(row < ROWS) & ok_word, other=0)
            H = H >> (8 * ((first + lane_block) % 2))
        for part in tl.static_range(PARTS):
            plain = tl.zeros([1, 128], tl.float32)
            largest = tl.zeros([1, 128], tl.float32)
            for j in tl.static_range(part * J // PARTS, (part + 1) * J // PARTS):
                even, odd = _pair(x_ptr, base, first + lane_block, inside, ok_word, M, j, KIND, MASKED)
                if FAST:
                    largest = tl.maximum(largest, tl.maximum(tl.abs(even), tl.abs(odd)))
                else:
                    plain += even + odd
            if FAST:
                up, down = half_scales(tl.max(tl.reshape(largest, [1, 32, 4]), 2))
                up = tl.reshape(tl.broadcast_to(up[:, :, None], [1, 32, 4]), [1, 128])
                even, odd = _pair(x_ptr, base, first + lane_block, inside, ok_word, M, 0, KIND, MASKED)
                x0, sum0 = as_halves(even, odd, up)
                even, odd = _pair(x_ptr, base, first + lane_block, inside, ok_word, M, 1, KIND, MASKED)
                x1, sum1 = as_halves(even, odd, up * 0.0625)
                even, odd = _pair(x_ptr, base, first + lane_block, inside, ok_word, M, 2, KIND, MASKED)
                x2, sum2 = as_halves(even, odd, up)
                even, odd = _pair(x_ptr, base, first + lane_block, inside, ok_word, M, 3, KIND, MASKED)
                x3, sum3 = as_halves(even, odd, up * 0.0625)
                plain = (sum0 + sum2) + (sum1 + sum3) * 16.0
                sums = tl.sum(tl.reshape(nibble_dot(W, x0, x1, x2, x3), [R, 32, 4]), 2) * 2.0**24
                plains = tl.sum(tl.reshape(plain, [1, 32, 4]), 2)
                total = (sums - plains * zero_of(M)) * (down * lowered(M))
                plains *= down * lowered(M)
            else:
                plain = plain * lowered(M)
                # Where every code has the same zero, the sum starts with it: no row pays for it.
                products = tl.broadcast_to(plain * -zero_of(M), [R, 128])
                for j in tl.static_range(part * J // PARTS, (part + 1) * J // PARTS):
                    even, odd = _pair(x_ptr, base, first + lane_block, inside, ok_word, M, j, KIND, MASKED)
                    products += raw(W, lut_ptr, 0, j, M) * (even * lift(M, 0, j))
                    products += raw(W, lut_ptr, 1, j, M) * (odd * lift(M, 1, j))
                    if HIGH:
                        products += raw_high(H, 0, j) * (even * lift_high(0, j))
                        products += raw_high(H, 1, j) * (odd * lift_high(1, j))
                total = tl.sum(tl.reshape(products, [R, 32, 4]), 2)
                plains = tl.sum(tl.reshape(plain, [1, 32, 4]), 2)
            ok_unit = (unit_row < ROWS) & (block < NB - first)
            scale, offset = scale_and_offset(base, unit_row, first + block, ok_unit, M, part, MASKED)
            acc += total * scale
            if has_offset(M):
                acc += plains * offset
    line = first_row + tl.arange(0, R * Q)
    return tl.reshape(tl.sum(tl.reshape(acc, [R, Q, B]), 2), [R * Q]) * (row_factor(base, line, M) * raised(M))
