"""nf4: 4-bit indices of the NormalFloat table, with the largest magnitude of every 64 columns as their scale.

w = NF4[index] * scale. Source: Dettmers et al., QLoRA, 2023, appendix E (the table).

Legend: N rows, K columns.
"""

from dataclasses import dataclass

import torch

from rgpu.quant.fields import pack_fields, unpack_fields
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes, check_columns

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True, slots=True)
class Nf4:
    """`q` int16 [N, K/4] (fields of 4 bits, indices of `NF4`), `scale` float32 [N, K/64]."""

    name: str = "nf4"
    bits: int = 4
    group: int = 64

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        check_columns("nf4", cols, 64)
        return Part("q", torch.int16, (rows, cols // 4)), Part("scale", torch.float32, (rows, cols // 64))

    def store(self, codes_NK: torch.Tensor, scale_NG: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays from indices in 0..15 [N, K] and float32 scales [N, K/64]: bits move, none changes. `InputError` for
        indices out of range and scales of another dtype or shape, or not finite."""
        check_codes("nf4", codes_NK, 4)
        arrays = {"q": pack_fields(codes_NK, 4), "scale": scale_NG.contiguous()}
        check_arrays(self, arrays, *codes_NK.shape)
        return arrays

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] indices in 0..15."""
        return unpack_fields(arrays["q"], 4)

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        levels = torch.tensor(NF4, dtype=torch.float32, device=arrays["q"].device)
        return levels[self.codes(arrays).int()] * arrays["scale"].repeat_interleave(64, 1)
