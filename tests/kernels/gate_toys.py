"""Small kernels for the tests of the compile gate, listed as a kernel module lists what it ships."""

import triton
import triton.language as tl

from rgpu.kernels.gate.shipped import Shipped


@triton.jit
def gemv(q_ptr, x_ptr, y_ptr, stride_q, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros([BN, BK], tl.float32)
    for k0 in range(0, K, BK):
        w = tl.load(q_ptr + n[:, None] * stride_q + k0 + k[None, :])  # weights
        acc += w.to(tl.float32) * tl.load(x_ptr + k0 + k)[None, :].to(tl.float32)
    tl.store(y_ptr + n, tl.sum(acc, 1))


@triton.jit
def dot(  # type: ignore[no-untyped-def]
    q_ptr, x_ptr, y_ptr, stride_q, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    acc = tl.zeros([BN, BM], tl.float32)
    for k0 in range(0, K, BK):
        w = tl.load(q_ptr + n[:, None] * stride_q + k0 + k[None, :])  # weights
        acc = tl.dot(w.to(tl.float16), tl.load(x_ptr + m[None, :] * K + k0 + k[:, None]), acc)
    tl.store(y_ptr + n[:, None] * BM + m[None, :], acc)


@triton.jit
def flush(x_ptr, y_ptr):  # type: ignore[no-untyped-def]
    k = tl.arange(0, 128)
    x = tl.load(x_ptr + k)
    y = tl.inline_asm_elementwise("mul.ftz.f32 $0, $1, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(y_ptr + k, y)


@triton.jit
def endless(x_ptr, y_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in tl.static_range(N):
        total += tl.load(x_ptr + i)
    tl.store(y_ptr, total)


@triton.jit
def wrong(x_ptr, y_ptr):  # type: ignore[no-untyped-def]
    tl.store(y_ptr, tl.load(x_ptr) + tl.arange(0, 3))


TYPES = {"q_ptr": "*u8", "x_ptr": "*fp16", "y_ptr": "*fp32", "stride_q": "i32"}
GEMV = {"K": 1024, "BN": 16, "BK": 256}
PLAIN = {"x_ptr": "*fp32", "y_ptr": "*fp32"}
HERE = "tests.kernels.gate_toys"
SHIPPED = (
    Shipped("gemv", HERE, "gemv", TYPES, GEMV, 4, 3, 16 * 256, ("vector_loads", "subnormals"), bits=8),
    Shipped("gemv/narrow", HERE, "gemv", TYPES, {**GEMV, "BN": 8, "BK": 64}, 4, 3, 512, ("vector_loads",), bits=8),
    Shipped(
        "gemv/starved", HERE, "gemv", TYPES, GEMV, 4, 3, 16 * 256, targets=("sm90",), bits=8, options={"maxnreg": 32}
    ),
    Shipped("gemv/mistaken", HERE, "gemv", TYPES, GEMV, 4, 3, 16 * 256, ("mma",), bits=6),
    Shipped("dot", HERE, "dot", TYPES, {"K": 8192, "BN": 64, "BK": 64, "BM": 16}, 4, 3, 64 * 64, ("mma",), bits=8),
    Shipped("gemv/flushing", HERE, "gemv", TYPES, GEMV, 4, 3, 0, ("subnormals",), options={"allow_flush_denorm": True}),
    Shipped("flush", HERE, "flush", PLAIN, {}, 4, 1, 0, ("subnormals",), targets=("sm90",)),
    Shipped("endless", HERE, "endless", PLAIN, {"N": 1_000_000}, 1, 1, 0, targets=("sm90",)),
    Shipped("wrong", HERE, "wrong", PLAIN, {}, 1, 1, 0, targets=("sm90",)),
)
