"""`TorchCompute`: experts from slots by plain torch in float32, the oracle of every other way to compute them.

Legend: T tokens, D hidden size, I expert width, K top-k, S slots, B bytes of a slot.
"""

import torch

from rgpu.errors import InputError
from rgpu.quant.gates import apply_gate
from rgpu.quant.layout import DenseExpert, SlotLayout
from rgpu.types import Gate


def dense_forward(expert: DenseExpert, gate: Gate, x_ND: torch.Tensor) -> torch.Tensor:
    """float32 [N, D]: one expert's output for rows x, in float32."""
    linear, x = torch.nn.functional.linear, x_ND.float()
    h_NI = apply_gate(gate, linear(x, expert.gate, expert.gate_bias), linear(x, expert.up, expert.up_bias))
    return linear(h_NI, expert.down, expert.down_bias)


def check_call(
    layout: SlotLayout, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor, weight_TK: torch.Tensor,
    *, read_slots: bool = True,
) -> None:  # fmt: skip
    """`InputError` for arguments that do not fit `ExpertCompute`. `read_slots=False` leaves out the range of the slots,
    which on a GPU would wait for the device."""
    if (
        x_TD.dim() != 2
        or x_TD.shape[1] != layout.hidden
        or x_TD.dtype not in (torch.float32, torch.bfloat16, torch.float16)
    ):
        raise InputError(
            f"experts: got x {x_TD.dtype} {list(x_TD.shape)}; expected [T, {layout.hidden}] in float32, bfloat16 or float16"
        )
    if slots_SB.dtype != torch.uint8 or slots_SB.dim() != 2 or slots_SB.shape[1] < layout.nbytes:
        raise InputError(
            f"experts: got slots {slots_SB.dtype} {list(slots_SB.shape)}; expected uint8 [S, {layout.nbytes} or more]"
        )
    if slots_SB.stride(1) != 1 or slots_SB.stride(0) % 128 or slots_SB.data_ptr() % 16:
        raise InputError(
            f"experts: got slots {slots_SB.stride(0)} bytes apart at an address {slots_SB.data_ptr() % 16} past a multiple of "
            "16; expected rows that are contiguous, a multiple of 128 bytes apart and aligned to 16"
        )
    pairs = tuple(slot_TK.shape)
    if slot_TK.dtype != torch.int32 or slot_TK.dim() != 2 or pairs[0] != x_TD.shape[0]:
        raise InputError(f"experts: got slot_TK {slot_TK.dtype} {list(pairs)}; expected int32 [{x_TD.shape[0]}, K]")
    if weight_TK.dtype != torch.float32 or tuple(weight_TK.shape) != pairs:
        raise InputError(
            f"experts: got weight_TK {weight_TK.dtype} {list(weight_TK.shape)}; expected float32 {list(pairs)}"
        )
    devices = {tensor.device for tensor in (x_TD, slot_TK, weight_TK)}
    if slots_SB.device not in devices and not (x_TD.is_cuda and slots_SB.is_pinned()):  # a GPU reads page-locked memory
        devices.add(slots_SB.device)
    if len(devices) > 1:
        raise InputError(f"experts: got tensors on {', '.join(sorted(map(str, devices)))}; expected one device")
    if read_slots and slot_TK.numel() and not (int(slot_TK.min()) >= -1 and int(slot_TK.max()) < slots_SB.shape[0]):
        raise InputError(
            f"experts: got slots {int(slot_TK.min())} to {int(slot_TK.max())}; expected -1 to {slots_SB.shape[0] - 1}"
        )


class TorchCompute:
    """`ExpertCompute` by unpacking each expert that is used to float32: slow, and right by construction."""

    def __init__(self, layout: SlotLayout, gate: Gate) -> None:
        self.layout = layout
        self.gate = gate

    def __call__(
        self, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor, weight_TK: torch.Tensor
    ) -> torch.Tensor:
        """See `ExpertCompute`."""
        if x_TD.device.type != "cpu":
            raise InputError(
                f"TorchCompute: got tensors on {x_TD.device}; expected the CPU, where weights unpack; move them"
            )
        check_call(self.layout, x_TD, slots_SB, slot_TK, weight_TK)
        tokens, top_k = slot_TK.shape
        parts_TKD = torch.zeros(tokens, top_k, self.layout.hidden, dtype=torch.float32)
        for slot in slot_TK.unique().tolist():
            if slot >= 0:
                token_N, rank_N = (slot_TK == slot).nonzero(as_tuple=True)
                y_ND = dense_forward(self.layout.unpack(slots_SB[slot]), self.gate, x_TD[token_N])
                parts_TKD[token_N, rank_N] = y_ND * weight_TK[token_N, rank_N, None]
        out_TD = torch.zeros(tokens, self.layout.hidden, dtype=torch.float32)
        for rank in range(top_k):
            out_TD += parts_TKD[:, rank]
        return out_TD.to(x_TD.dtype)
