"""`SlotTable`: which slot holds which expert, where the device can look it up.

Legend: L MoE layers, E experts a layer.
"""

import numpy as np
import torch

from rgpu.types import ExpertKey


class SlotTable:
    """`slots_LE` int32 on the device: the row of an expert's pool that holds it for everything computed from now on, or -1.

    Changed on the host (`host_LE`), and brought over layer by layer with `upload`, in order with what is computed.
    """

    def __init__(self, layers: int, experts: int, device: torch.device) -> None:
        self.host_LE = np.full((layers, experts), -1, np.int32)
        self.slots_LE = torch.from_numpy(self.host_LE.copy()).to(device)
        self._changed: set[int] = set()

    def set(self, key: ExpertKey, slot: int) -> None:
        """The expert is in that slot now (-1: in none)."""
        if self.host_LE[key.layer, key.expert] != slot:
            self.host_LE[key.layer, key.expert] = slot
            self._changed.add(key.layer)

    def upload(self) -> None:
        """Queues the layers that changed for the device."""
        for layer in self._changed:
            # a row is small: the driver keeps a copy of it, so that the host may change it before the device has read it
            self.slots_LE[layer].copy_(torch.from_numpy(self.host_LE[layer].copy()), non_blocking=True)
        self._changed.clear()
