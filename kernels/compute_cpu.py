"""`CpuCompute`: experts from slots on a processor, reading the stored bytes directly; made for decode (1 to 16 rows).

Legend: T tokens, D hidden size, I expert width, K top-k, S slots, B bytes of a slot; P pairs (token, expert), token by
token.
"""

from array import array
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from rgpu.errors import InputError
from rgpu.kernels.compute_torch import check_call
from rgpu.kernels.cpu.activations import ready_numbers
from rgpu.kernels.cpu.combine import combiner
from rgpu.kernels.cpu.decode import decoder_of
from rgpu.kernels.cpu.matrix import matrix_of
from rgpu.kernels.cpu.multiply import TILE, kernel
from rgpu.quant.layout import SlotLayout
from rgpu.types import Gate

ALONE = 1 << 19  # weights: fewer are multiplied sooner than another thread is woken
Tile = tuple[int, int, int]  # address of a slot; the first of its pairs in the list of pairs, and how many
Places = tuple[int, int, int, int]  # addresses of x and of the list of its rows, of y and of the list of its rows


class CpuCompute:
    """`ExpertCompute` without unpacking: weights are decoded in registers and multiplied in float32.

    `threads` (1 where None; the caller's is one of them) share the output rows of every expert where there is enough to do;
    results are the same bit for bit with any number of them, in any slots and beside any other tokens. Kernels are compiled
    at first use, for the layout at hand. Torch's own threads play no part. A format without a decoder, tensors on another
    device, or an x86 processor without AVX2, FMA and F16C: `InputError`. Not for several threads at a time: what a `wave`
    computed waits in the object.
    """

    def __init__(self, layout: SlotLayout, gate: Gate, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"CPU experts: got threads={threads}; expected 1 or more")
        self.layout = layout
        self.gate = gate
        self.threads = threads or 1
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        self._matrices = {name: matrix_of(layout, name) for name in ("gate_up", "down")}
        for matrix in self._matrices.values():
            decoder_of(matrix.format)
        self._parts_PD = _numbers(0, layout.hidden)
        self._room = max(ready_numbers(matrix, TILE) for matrix in self._matrices.values())

    def __call__(
        self, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor, weight_TK: torch.Tensor
    ) -> torch.Tensor:
        """See `ExpertCompute`."""
        self.wave(x_TD, slots_SB, slot_TK, weight_TK)
        return self.finish(x_TD, slot_TK, weight_TK)

    def wave(self, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor, weight_TK: torch.Tensor) -> None:
        """Computes the pairs whose slot is not -1 and keeps their outputs until `finish`; each pair belongs to one wave."""
        if x_TD.device.type != "cpu":
            raise InputError(f"CPU experts: got tensors on {x_TD.device}; expected them on the CPU")
        check_call(self.layout, x_TD, slots_SB, slot_TK, weight_TK, read_slots=False)
        tokens, top_k = slot_TK.shape
        pairs: dict[int, list[int]] = {}
        for pair, slot in enumerate(slot_TK.flatten().tolist()):
            if slot >= 0:
                pairs.setdefault(slot, []).append(pair)
            elif slot < -1:
                check_call(self.layout, x_TD, slots_SB, slot_TK, weight_TK)
        if pairs and max(pairs) >= len(slots_SB):
            check_call(self.layout, x_TD, slots_SB, slot_TK, weight_TK)
        tiles: list[Tile] = []
        pair_rows = array("i")
        for slot, same in pairs.items():
            address = slots_SB.data_ptr() + slot * slots_SB.stride(0)
            tiles += [(address, len(pair_rows) + k, min(TILE, len(same) - k)) for k in range(0, len(same), TILE)]
            pair_rows.extend(same)
        token_rows = array("i", [pair // top_k for pair in pair_rows])
        inputs = x_TD.float().contiguous()
        both_PI = _numbers(tokens * top_k, 2 * self.layout.intermediate)
        if self._parts_PD.shape[0] != tokens * top_k:
            self._parts_PD = _numbers(tokens * top_k, self.layout.hidden)
        of_tokens, of_pairs = token_rows.buffer_info()[0], pair_rows.buffer_info()[0]
        self._pass("gate_up", None, tiles, (inputs.data_ptr(), of_tokens, both_PI.data_ptr(), of_pairs))
        self._pass("down", self.gate, tiles, (both_PI.data_ptr(), of_pairs, self._parts_PD.data_ptr(), of_pairs))

    def finish(self, x_TD: torch.Tensor, served_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """[T, D] in x's dtype: the weighted sum of what the waves computed. `served_TK` int32 [T, K]: not -1 where some
        wave had the pair."""
        tokens, top_k = served_TK.shape
        slots, weights, out_TD = served_TK.contiguous(), weight_TK.contiguous(), _numbers(tokens, self.layout.hidden)
        if self._parts_PD.shape[0] != tokens * top_k:
            raise InputError(
                f"CPU experts: got {tokens * top_k} pairs; expected the {len(self._parts_PD)} of the waves"
            )
        addresses = (tensor.data_ptr() for tensor in (self._parts_PD, slots, weights, out_TD))
        combiner(self.layout.hidden).call(*addresses, tokens, top_k)
        return out_TD.to(x_TD.dtype)

    def outputs(self) -> torch.Tensor:
        """float32 [P, D]: each pair's own output, not weighted, of the pairs that some wave of the same tokens had."""
        return self._parts_PD

    def place(self, pair_N: torch.Tensor, y_ND: torch.Tensor) -> None:
        """Outputs of pairs that were computed elsewhere, after a `wave` of the same tokens: pairs int64 [N] (token * K + rank),
        y [N, D]."""
        self._parts_PD[pair_N] = y_ND.float()

    def _pass(self, name: str, gate: Gate | None, tiles: list[Tile], places: Places) -> None:
        """Every tile's rows times the matrix `name` of its slot, each thread a share of the output columns."""
        matrix = self._matrices[name]
        calls = {count: kernel(matrix, count, gate).call for count in {count for _, _, count in tiles}}
        threads = self.threads if len(tiles) * matrix.rows * matrix.cols >= ALONE else 1
        ready = _numbers(threads, self._room)

        def share(thread: int) -> None:
            first, last = (matrix.rows * t // threads for t in (thread, thread + 1))
            (x, x_rows, y, y_rows), room = places, ready[thread].data_ptr()
            for slot, k, count in tiles:
                calls[count](slot, x, x_rows + 4 * k, y, y_rows + 4 * k, room, first, last)

        if self._pool is None or threads == 1:
            share(0)
        else:
            running = [self._pool.submit(share, thread) for thread in range(1, threads)]
            try:
                share(0)
                for one in running:
                    one.result()
            finally:
                wait(running)  # also when interrupted: they write into memory that the caller would free


def _numbers(*shape: int) -> torch.Tensor:
    """float32 on the CPU, whatever torch's defaults are: machine code writes there."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
