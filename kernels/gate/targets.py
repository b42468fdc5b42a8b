"""What the gate compiles for: versions of Triton, and architectures with their limits.

Shared memory a program may use: CUDA C++ Programming Guide, table of compute capabilities (opt-in maximum); 64 KiB of LDS
on both AMD architectures.
"""

from dataclasses import dataclass

VERSIONS = ("3.6.0", "3.9.0")  # the oldest that rgpu allows, and the one its environment installs


@dataclass(frozen=True, slots=True)
class Target:
    """`lanes` of a warp; `shared_bytes` a program may use; `matrix`: pattern of the opcodes of matrix units."""

    backend: str
    arch: int | str
    lanes: int
    shared_bytes: int
    matrix: str


_MMA = "[HIQO]MMA"
TARGETS = {
    "sm80": Target("cuda", 80, 32, 163 << 10, _MMA),
    "sm89": Target("cuda", 89, 32, 99 << 10, _MMA),
    "sm90": Target("cuda", 90, 32, 227 << 10, f"[HIQ]GMMA|{_MMA}"),
    "sm100": Target("cuda", 100, 32, 227 << 10, rf"UTC\w*MMA|{_MMA}"),
    "sm120": Target("cuda", 120, 32, 99 << 10, _MMA),
    "gfx942": Target("hip", "gfx942", 64, 64 << 10, "v_s?mfma"),
    "gfx1100": Target("hip", "gfx1100", 32, 64 << 10, "v_s?wmma"),
}
