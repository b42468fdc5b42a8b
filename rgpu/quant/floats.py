"""Small floating-point codes to float32, exactly: e2m1 (4 bits), e4m3fn (8 bits) and e8m0 (a power of two in 8 bits).

Sources: OCP Microscaling Formats (MX) 1.0, sections 5.3.1 (e4m3), 5.3.3 (e2m1) and 5.4.1 (e8m0); e4m3fn is e4m3 without
infinities, whose codes 127 and 255 are NaN.
"""

import torch

from rgpu.errors import InputError

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
E8M0_MAX = 252  # 6 * 2**(252 - 127) is the largest product of an e2m1 number that float32 holds


def _e4m3(code: int) -> float:
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if sign else size


E4M3 = tuple(_e4m3(code) for code in range(256))


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """float32 numbers of e2m1 codes in 0..15 (any integer dtype), same shape."""
    return torch.tensor(E2M1, dtype=torch.float32, device=codes.device)[codes.int()]


def decode_e4m3(codes: torch.Tensor) -> torch.Tensor:
    """float32 numbers of e4m3fn codes (uint8), same shape; codes 127 and 255 become NaN."""
    return torch.tensor(E4M3, dtype=torch.float32, device=codes.device)[codes.int()]


def decode_e8m0(codes: torch.Tensor) -> torch.Tensor:
    """float32 2**(code - 127) of codes in 0..254 (uint8), same shape; code 0 is the subnormal 2**-127."""
    bits = codes.int() << 23  # the code is a float32's own exponent field
    return torch.where(codes == 0, 1 << 22, bits).view(torch.float32)


def check_e4m3(name: str, what: str, codes: torch.Tensor) -> None:
    """`InputError` where one of the e4m3fn codes is NaN."""
    if codes.numel() and bool(((codes & 127) == 127).any()):
        raise InputError(
            f"{name}: got {what} that are NaN (e4m3 code 127 or 255); expected numbers; the checkpoint is damaged"
        )


def check_e8m0(name: str, codes: torch.Tensor) -> None:
    """`InputError` where a scale is NaN (code 255) or so large that a product with it overflows float32."""
    if codes.numel() and int(codes.max()) > E8M0_MAX:
        raise InputError(
            f"{name}: got an e8m0 scale of code {int(codes.max())}; expected at most {E8M0_MAX} (255 is NaN, the others "
            "overflow float32); the checkpoint is damaged"
        )
