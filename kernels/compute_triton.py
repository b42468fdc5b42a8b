"""`TritonCompute`: experts from slots by the Triton kernels, for a few tokens or many, in one wave or several.

Legend: T tokens, D hidden size, I expert width, K top-k, P = T * K pairs, S slots, B bytes of a slot.
"""

import torch

from rgpu.errors import InputError
from rgpu.kernels.compute_torch import check_call
from rgpu.kernels.decode import combine, decode_pairs
from rgpu.kernels.prefill import is_gfx11, prefill_pairs
from rgpu.kernels.route import route
from rgpu.kernels.shapes import AMD
from rgpu.quant.layout import SlotLayout
from rgpu.types import Gate

DECODE_TOKENS = (
    16  # up to here every pair goes by itself: mostly quicker up to 8 on an H200 (docs/gpu.md), above not measured
)
OLDEST = (8, 0)  # compute capability: bf16 arithmetic


class TritonCompute:
    """`ExpertCompute` on a GPU (or, with TRITON_INTERPRET=1, slowly on a CPU).

    `fast`: inline assembly where format and card have it (`rgpu.kernels.halfword`); off until it has been checked on the
    card at hand. Called with all of a token's experts in slots it computes in one go. When they do not fit, `wave` runs
    once for every set of slots, each pair in exactly one of them, and `finish` adds up: the result is bit for bit the same,
    as every pair's output is kept apart until the end. Buffers are kept between calls and grow when needed.

    `check_slots`: look for slots out of range before each launch, which on a GPU waits for the device; an engine that makes
    its own slot tables turns it off.
    """

    def __init__(self, layout: SlotLayout, gate: Gate, *, fast: bool = False, check_slots: bool = True) -> None:
        self.layout = layout
        self.gate = gate
        self.fast = fast
        self.check_slots = check_slots
        self._part_PD = torch.empty(0, layout.hidden)
        self._h_PI = torch.empty(0, layout.intermediate)

    def __call__(
        self, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor, weight_TK: torch.Tensor
    ) -> torch.Tensor:
        """See `ExpertCompute`."""
        self.wave(x_TD, slots_SB, slot_TK, weight_TK)
        return self.finish(x_TD, slot_TK, weight_TK)

    def wave(self, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor, weight_TK: torch.Tensor) -> None:
        """Computes the pairs whose slot is not -1 and keeps their outputs."""
        check_device(x_TD.device)
        check_call(self.layout, x_TD, slots_SB, slot_TK, weight_TK, read_slots=self.check_slots)
        x_TD, slot_TK = x_TD.contiguous(), slot_TK.contiguous()
        x_TD = x_TD.clone() if x_TD.data_ptr() % 16 else x_TD
        self._reserve(slot_TK, x_TD)
        if self._by_pairs(x_TD):
            decode_pairs(
                self.layout, self.gate, x_TD, slots_SB, slot_TK, self._h_PI, self._part_PD, fast=self.fast
            )  # fmt: skip
        else:
            prefill_pairs(self.layout, self.gate, x_TD, slots_SB, slot_TK, self._part_PD)

    def route(
        self, ids_TK: torch.Tensor, weights_TK: torch.Tensor, lookup_E: torch.Tensor, word_P: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(slots, float32 weights) for `wave` from a router's choice and its layer's table; see `rgpu.kernels.route`."""
        return route(ids_TK.contiguous(), weights_TK.contiguous(), lookup_E, word_P)

    def finish(self, x_TD: torch.Tensor, served_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """[T, D] in x's dtype: the weighted sum of what the waves computed. `served_TK` int32 [T, K]: not -1 where some
        wave had the pair."""
        out_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
        combine(self._part_PD, served_TK.contiguous(), weight_TK.contiguous(), out_TD)
        return out_TD

    def place(self, pair_N: torch.Tensor, y_ND: torch.Tensor) -> None:
        """Outputs of pairs that were computed elsewhere, after a `wave` of the same tokens: pairs int64 [N] (token * K + rank),
        y [N, D], from any device."""
        device = self._part_PD.device
        self._part_PD[pair_N.to(device)] = y_ND.to(device, torch.float32)

    @staticmethod
    def _by_pairs(x_TD: torch.Tensor) -> bool:
        """Whether `decode` does it: few tokens, or float32 on gfx11, where no tile of `prefill` fits the registers."""
        return x_TD.shape[0] <= DECODE_TOKENS or (x_TD.dtype == torch.float32 and is_gfx11())

    def _reserve(self, slot_TK: torch.Tensor, x_TD: torch.Tensor) -> None:
        pairs, decode, device = slot_TK.numel(), self._by_pairs(x_TD), x_TD.device
        if self._part_PD.shape[0] < pairs or self._part_PD.device != device:
            self._part_PD = torch.empty(pairs, self.layout.hidden, dtype=torch.float32, device=device)
        if decode and (self._h_PI.shape[0] < pairs or self._h_PI.device != device):
            self._h_PI = torch.empty(pairs, self.layout.intermediate, dtype=torch.float32, device=device)


def on_gpu(layout: SlotLayout, gate: Gate, _threads: int = 1) -> TritonCompute:
    """What an engine wants of `TritonCompute`: it makes its own slot tables."""
    return TritonCompute(layout, gate, check_slots=False)


def check_device(device: torch.device) -> None:
    """`InputError` for a device that the kernels cannot run on."""
    if device.type == "cpu":
        from triton import knobs

        if not knobs.runtime.interpret:
            raise InputError(
                "Triton kernels: got tensors on the CPU; expected a GPU; use CpuCompute, or set TRITON_INTERPRET=1 to test"
            )
    elif device.type != "cuda":
        raise InputError(f"Triton kernels: got tensors on {device}; expected an NVIDIA or AMD GPU; use CpuCompute")
    elif device.index not in (None, torch.cuda.current_device()):
        raise InputError(
            f"Triton kernels: got tensors on {device} while cuda:{torch.cuda.current_device()} is current; expected one "
            "device; wrap the call in torch.cuda.device"
        )
    elif torch.version.hip is not None:
        arch = torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
        if arch not in AMD:
            raise InputError(f"Triton kernels: got an AMD {arch}; expected one of {', '.join(AMD)}; use CpuCompute")
    elif torch.cuda.get_device_capability(device) < OLDEST:
        major, minor = torch.cuda.get_device_capability(device)
        raise InputError(
            f"Triton kernels: got a GPU of compute capability {major}.{minor}; expected 8.0 or newer; use CpuCompute"
        )
