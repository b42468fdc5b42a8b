"""`unpack` against the libraries whose checkpoints these formats come from, bit for bit (+0 and -0 count as equal)."""

from typing import Any

import numpy as np
import pytest
import torch

from rgpu.quant.fp8_block import Fp8Block
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.quant.nf4 import Nf4
from rgpu.quant.nvfp4 import Nvfp4
from rgpu.quant.q4_k import Q4K
from rgpu.quant.q6_k import Q6K
from rgpu.quant.q8_0 import Q8_0
from tests.unit.quant.samples import e4m3_codes, integers

ROWS, COLS = 7, 1024


def rng_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def halves(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """Finite float16 numbers of every size, subnormals included: random bits without the exponent of infinity."""
    bits = torch.randint(0, 1 << 16, shape, generator=rng).to(torch.int32)
    bits = torch.where((bits >> 10 & 31) == 31, bits ^ 1 << 14, bits)
    return (bits - (bits >> 15 << 16)).to(torch.int16).view(torch.float16)


def gguf_numbers(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    gguf = pytest.importorskip("gguf")
    return torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind])).reshape(ROWS, COLS)


def nibbles(bytes_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return bytes_ & 15, bytes_ >> 4


@pytest.mark.parametrize("seed", range(3))
def test_q8_0_is_gguf_s(seed: int) -> None:
    rng = rng_of(seed)
    d, q = halves(rng, ROWS, COLS // 32, 1), integers(rng, 0, 255, ROWS, COLS // 32, 32)
    blocks = torch.cat([d.view(torch.uint8), q], -1).reshape(ROWS, -1)
    codes = q.view(torch.int8).short() + 128
    arrays = Q8_0().store(codes.reshape(ROWS, COLS), d[..., 0])
    assert torch.equal(Q8_0().unpack(arrays), gguf_numbers(blocks, "Q8_0"))


@pytest.mark.parametrize("seed", range(3))
def test_q4_k_is_gguf_s(seed: int) -> None:
    """A block of 144 bytes: d, dmin, 12 bytes of 6-bit scales and minima, 128 bytes of nibbles (32 low, 32 high)."""
    rng = rng_of(seed)
    S = COLS // 256
    d, dmin = halves(rng, ROWS, S, 1), halves(rng, ROWS, S, 1)
    packed, q = integers(rng, 0, 255, ROWS, S, 12), integers(rng, 0, 255, ROWS, S, 4, 32)
    blocks = torch.cat([d.view(torch.uint8), dmin.view(torch.uint8), packed, q.flatten(2)], -1).reshape(ROWS, -1)
    first, second, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = torch.cat([first & 63, rest & 15 | (first >> 6) << 4], -1).reshape(ROWS, -1)
    minimum = torch.cat([second & 63, rest >> 4 | (second >> 6) << 4], -1).reshape(ROWS, -1)
    codes = torch.stack(nibbles(q), 3).reshape(ROWS, COLS)
    arrays = Q4K().store(codes, scale, minimum, d[..., 0], dmin[..., 0])
    assert torch.equal(Q4K().unpack(arrays), gguf_numbers(blocks, "Q4_K"))


@pytest.mark.parametrize("seed", range(3))
def test_q6_k_is_gguf_s(seed: int) -> None:
    """A block of 210 bytes: 128 of low nibbles, 64 of high pairs of bits, 16 int8 scales, d."""
    rng = rng_of(seed)
    S = COLS // 256
    low, high = integers(rng, 0, 255, ROWS, S, 2, 64), integers(rng, 0, 255, ROWS, S, 2, 32)
    scale, d = integers(rng, 0, 255, ROWS, S, 16), halves(rng, ROWS, S, 1)
    blocks = torch.cat([low.flatten(2), high.flatten(2), scale, d.view(torch.uint8)], -1).reshape(ROWS, -1)
    low_bits = torch.stack(nibbles(low), 3).flatten(3)  # 64 low nibbles, then 64 high ones: columns of a half block
    high_bits = torch.stack([high >> shift & 3 for shift in (0, 2, 4, 6)], 3).flatten(3)
    codes = (low_bits | high_bits << 4).reshape(ROWS, COLS)
    arrays = Q6K().store(codes, scale.view(torch.int8).reshape(ROWS, -1), d[..., 0])
    assert torch.equal(Q6K().unpack(arrays), gguf_numbers(blocks, "Q6_K"))


def test_mxfp4_is_gguf_s() -> None:
    """A block of 17 bytes: e8m0, then 16 bytes of nibbles, low ones first."""
    rng = rng_of(0)
    scale, q = integers(rng, 0, 252, ROWS, COLS // 32, 1), integers(rng, 0, 255, ROWS, COLS // 32, 16)
    arrays = Mxfp4().store(torch.cat(nibbles(q), -1).reshape(ROWS, COLS), scale[..., 0])
    theirs = gguf_numbers(torch.cat([scale, q], -1).reshape(ROWS, -1), "MXFP4")
    assert torch.equal(Mxfp4().unpack(arrays), theirs)


def test_mxfp4_is_gpt_oss_s() -> None:
    """transformers' reading of `*_blocks` and `*_scales`: the low nibble is the even column; it returns [E, K, N]."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = rng_of(1)
    blocks, scales = integers(rng, 0, 255, 1, ROWS, COLS // 32, 16), integers(rng, 2, 252, 1, ROWS, COLS // 32)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)[0].T
    arrays = Mxfp4().store(torch.stack(nibbles(blocks[0]), -1).reshape(ROWS, COLS), scales[0])
    assert torch.equal(Mxfp4().unpack(arrays), theirs)


def test_nf4_is_bitsandbytes_s() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(ROWS, COLS, generator=rng_of(2))
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    high_first = torch.stack(nibbles(packed.flatten())[::-1], -1).reshape(ROWS, COLS)
    arrays = Nf4().store(high_first, state.absmax.reshape(ROWS, -1))
    assert set(high_first.unique().tolist()) == set(range(16))
    assert torch.equal(Nf4().unpack(arrays), functional.dequantize_4bit(packed, state))


def test_fp8_block_is_torch_s_cast_times_its_block_s_scale() -> None:
    rng = rng_of(3)
    codes, scale = e4m3_codes(rng, 200, 304), torch.randn(2, 3, generator=rng)
    theirs = codes.view(torch.float8_e4m3fn).float()
    for row in range(200):
        for block in range(3):
            theirs[row, 128 * block : 128 * block + 128] *= scale[row // 128, block]
    assert torch.equal(Fp8Block().unpack(Fp8Block().store(codes, scale)), theirs)


def compressed_tensors_numbers(
    codes: torch.Tensor, scale: torch.Tensor, args: dict[str, Any], **more: Any
) -> torch.Tensor:
    """compressed-tensors' dequantisation of codes that it holds as numbers."""
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    arguments = pytest.importorskip("compressed_tensors.quantization").QuantizationArgs(**args)
    return forward.dequantize(codes, scale, args=arguments, dtype=torch.float32, **more)


@pytest.mark.parametrize("group", (32, 128))
@pytest.mark.parametrize("asymmetric", (False, True))
def test_int4_is_compressed_tensors_s(group: int, asymmetric: bool) -> None:
    """Packed by compressed-tensors (codes and zero points less 8), unpacked and dequantised by it."""
    helpers = pytest.importorskip("compressed_tensors.compressors")
    rng = rng_of(group)
    codes, scale = integers(rng, 0, 15, ROWS, COLS), torch.randn(ROWS, COLS // group, generator=rng)
    zero = integers(rng, 0, 15, ROWS, COLS // group)
    packed = helpers.pack_to_int32(codes.to(torch.int8) - 8, 4)
    plain = helpers.unpack_from_int32(packed, 4, codes.shape)
    args = {"num_bits": 4, "strategy": "group", "group_size": group, "symmetric": not asymmetric}
    points = {"zero_point": zero.to(torch.int8) - 8} if asymmetric else {}
    theirs = compressed_tensors_numbers(plain, scale, args, **points)
    fmt = Int4(group=group, asymmetric=asymmetric, scale_dtype=torch.float32)
    ours = fmt.store((plain + 8).to(torch.uint8), scale, zero if asymmetric else None)
    assert torch.equal(fmt.unpack(ours), theirs)


@pytest.mark.parametrize("group", (0, 64))
def test_int8_is_compressed_tensors_s(group: int) -> None:
    rng = rng_of(group)
    codes = integers(rng, 0, 255, ROWS, COLS)
    scale = torch.randn(ROWS, COLS // group if group else 1, generator=rng)
    args = (
        {"num_bits": 8, "strategy": "group", "group_size": group} if group else {"num_bits": 8, "strategy": "channel"}
    )
    theirs = compressed_tensors_numbers((codes.short() - 128).to(torch.int8), scale, args)
    fmt = Int8(group=group, scale_dtype=torch.float32)
    assert torch.equal(fmt.unpack(fmt.store(codes, scale)), theirs)


def test_nvfp4_is_compressed_tensors_s() -> None:
    """Its global scale divides ours multiplies: a power of two makes both exact. Low nibble is the even column."""
    helpers = pytest.importorskip("compressed_tensors.compressors")
    rng = rng_of(4)
    packed, scale = integers(rng, 0, 255, ROWS, COLS // 2), e4m3_codes(rng, ROWS, COLS // 16)
    numbers = helpers.unpack_fp4_from_uint8(packed, ROWS, COLS, torch.float32)
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    theirs = compressed_tensors_numbers(
        numbers, scale.view(torch.float8_e4m3fn).float(), args, global_scale=torch.tensor([2.0**9])
    )
    arrays = Nvfp4().store(torch.stack(nibbles(packed), -1).reshape(ROWS, COLS), scale, torch.tensor([2.0**-9]))
    assert torch.equal(Nvfp4().unpack(arrays), theirs)


def test_nvfp4_rounds_the_exact_product_once() -> None:
    rng = rng_of(5)
    codes, scale = integers(rng, 0, 15, ROWS, COLS), e4m3_codes(rng, ROWS, COLS // 16)
    factor = torch.rand(1, generator=rng)
    arrays = Nvfp4().store(codes, scale, factor)
    plain = Nvfp4().unpack({**arrays, "global": torch.ones(1)})
    assert np.array_equal((plain.double() * factor.double()).float().numpy(), Nvfp4().unpack(arrays).numpy())
