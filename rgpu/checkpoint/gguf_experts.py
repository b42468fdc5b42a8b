"""Experts of GGUF files.

A layer's experts are `blk.N.ffn_gate_exps.weight` and `ffn_up_exps.weight` [E, I, D], or both as `ffn_gate_up_exps.weight`
[E, 2I, D] with gate first, and `ffn_down_exps.weight` [E, D, I], each of its own type, which may differ from layer to layer;
biases are float32 beside them.

Legend: E experts a layer, I expert width, D hidden size.
"""

import re
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from rgpu.checkpoint.gguf_blocks import BLOCK_TYPES, BlockType, type_name
from rgpu.checkpoint.gguf_file import GgufFile, GgufTensor
from rgpu.errors import InputError
from rgpu.quant.layout import ExpertArrays, SlotLayout

_EXPERTS = re.compile(r"^blk\.(\d+)\.ffn_(gate|up|gate_up|down)_exps\.(.+)$")
_F32 = 0


class GgufExperts:
    """An `ExpertReader` of GGUF files, the parts of one model; see `ExpertReader` for what it offers.

    Gate and up must be of one type; down may be of another (`SlotLayout.down_format`), and layers may differ
    (`layout_of`). `layer_ids` count the file's blocks, below `<architecture>.block_count` less the blocks that predict
    further tokens. `InputError` names the tensor that is missing or of a type or shape that rgpu cannot hold.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._files = [GgufFile(path) for path in paths]
        self._found: dict[tuple[int, str], tuple[GgufFile, GgufTensor]] = {}
        keys = {name: value for file in self._files for name, value in file.keys.items()}
        layers = _count(keys)
        for file in self._files:
            for name, tensor in file.tensors.items():
                match = _EXPERTS.match(name)
                if match and (layers is None or int(match[1]) < layers) and match[3] != "input_scale":
                    if match[3] not in ("weight", "bias"):
                        raise InputError(
                            f"cannot read {name} in {paths[0]}: got a tensor that rgpu does not know beside the experts; "
                            "expected weight and bias alone"
                        )
                    self._found[int(match[1]), f"{match[2]}.{match[3]}"] = file, tensor
        if not self._found:
            raise InputError(
                f"no routed experts in {paths[0]}: got no tensor blk.N.ffn_gate_exps.weight; expected a "
                "Mixture-of-Experts model"
            )
        self.layer_ids = tuple(sorted({layer for layer, _ in self._found}))
        down = self._tensor(self.layer_ids[0], "down")
        if len(down.shape) != 3:
            raise InputError(f"cannot read {down.name}: got {list(down.shape)}; expected [experts, D, I]")
        self.experts, self.hidden, self.intermediate = down.shape
        self.bias = (self.layer_ids[0], "down.bias") in self._found
        self._layouts = {layer: self._layout(layer) for layer in self.layer_ids}
        self.format = self._layouts[self.layer_ids[0]].format

    def _tensor(self, layer: int, role: str) -> GgufTensor:
        entry = self._found.get((layer, f"{role}.weight"))
        if entry is None:
            raise InputError(
                f"incomplete {self.paths[0]}: got no blk.{layer}.ffn_{role}_exps.weight; expected gate, up and down of every "
                "MoE layer; name the folder with all parts of the model, or download it again"
            )
        return entry[1]

    def _type(self, tensor: GgufTensor, shape: tuple[int, ...]) -> BlockType:
        if tensor.shape != shape:
            raise InputError(f"cannot read {tensor.name}: got {list(tensor.shape)}; expected {list(shape)}")
        kind = BLOCK_TYPES.get(tensor.kind)
        if kind is None:
            raise InputError(
                f"cannot read {tensor.name}: got the type {type_name(tensor.kind)}; expected one of "
                f"{', '.join(t.name for t in BLOCK_TYPES.values())}; choose another quantisation of the model"
            )
        if shape[-1] % kind.columns:
            raise InputError(
                f"cannot read {tensor.name}: got {shape[-1]} columns of {kind.name}; expected a multiple of {kind.columns}"
            )
        return kind

    def _layout(self, layer: int) -> SlotLayout:
        E, D, I = self.experts, self.hidden, self.intermediate  # noqa: E741
        down = self._type(self._tensor(layer, "down"), (E, D, I))
        fused = (layer, "gate_up.weight") in self._found
        roles = ("gate_up",) if fused else ("gate", "up")
        for role, shape in (*((role, (E, 2 * I if fused else I)) for role in roles), ("down", (E, D))):
            entry = self._found.get((layer, f"{role}.bias"))
            name = f"blk.{layer}.ffn_{role}_exps.bias"
            if (entry is not None) != self.bias or (entry and (entry[1].shape != shape or entry[1].kind != _F32)):
                got = f"{type_name(entry[1].kind)} {list(entry[1].shape)}" if entry else "none"
                raise InputError(
                    f"cannot read {name}: got {got}; expected {f'F32 {list(shape)}' if self.bias else 'no bias'}"
                )
        tensors = [self._tensor(layer, role) for role in roles]
        kinds = [self._type(tensor, (E, 2 * I if fused else I, D)) for tensor in tensors]
        if kinds[0] is not kinds[-1]:
            raise InputError(
                f"cannot read {tensors[1].name}: got the type {kinds[1].name}; expected {kinds[0].name} as "
                f"{tensors[0].name} has"
            )
        other = None if down is kinds[0] else down.format
        layout = SlotLayout(I, D, kinds[0].format, self.bias, other)
        layout.nbytes  # noqa: B018  (a width that the format cannot hold is refused here)
        return layout

    @property
    def layout(self) -> SlotLayout:
        """Every layer's layout; `InputError` naming the first tensor of another type where layers differ."""
        first = self.layer_ids[0]
        for layer in self.layer_ids[1:]:
            if self._layouts[layer] != self._layouts[first]:
                role = next(
                    role for role in ("gate_up", "gate", "up", "down")
                    if (layer, f"{role}.weight") in self._found
                    and (first, f"{role}.weight") in self._found
                    and self._tensor(layer, role).kind != self._tensor(first, role).kind
                )  # fmt: skip
                ours, theirs = self._tensor(layer, role), self._tensor(first, role)
                raise InputError(
                    f"no one layout for {self.paths[0]}: got {type_name(ours.kind)} for {ours.name}; expected "
                    f"{type_name(theirs.kind)} as {theirs.name} has; use a file without use_more_bits, or one layout a layer"
                )
        return self._layouts[first]

    def layout_of(self, layer: int) -> SlotLayout:
        """See `ExpertReader`."""
        if layer not in self._layouts:
            raise InputError(f"no layer {layer} in {self.paths[0]}: got experts in layers {list(self.layer_ids)}")
        return self._layouts[layer]

    def read(self, layer: int, expert: int) -> ExpertArrays:
        """See `ExpertReader.read`."""
        self.layout_of(layer)
        if not 0 <= expert < self.experts:
            raise InputError(f"no expert {expert} in layer {layer} of {self.paths[0]}: got {self.experts} experts")
        I = self.intermediate  # noqa: E741
        if (layer, "gate_up.weight") in self._found:
            gate, up = self._arrays(layer, "gate_up", expert, 0, I), self._arrays(layer, "gate_up", expert, I, I)
        else:
            gate, up = (self._arrays(layer, role, expert, 0, I) for role in ("gate", "up"))
        down = self._arrays(layer, "down", expert, 0, self.hidden)
        return ExpertArrays(gate, up, down, *self._biases(layer, expert))

    def _arrays(self, layer: int, role: str, expert: int, row: int, rows: int) -> dict[str, torch.Tensor]:
        """The arrays of rows `row` to `row + rows` of one expert's matrix."""
        file, tensor = self._found[layer, f"{role}.weight"]
        kind = BLOCK_TYPES[tensor.kind]
        per_row = tensor.shape[2] // kind.columns * kind.block_bytes
        raw = file.bytes_of(tensor, (expert * tensor.shape[1] + row) * per_row, rows * per_row)
        try:
            return kind.arrays(torch.from_numpy(raw.copy()).view(rows, -1, kind.block_bytes))
        except InputError as error:
            raise InputError(f"cannot read expert {expert} of {tensor.name}: {error}") from None

    def _biases(self, layer: int, expert: int) -> list[Any]:
        if not self.bias:
            return [None] * 3
        made = {}
        for role in ("gate", "up", "gate_up", "down"):
            if (layer, f"{role}.bias") in self._found:
                file, tensor = self._found[layer, f"{role}.bias"]
                raw = file.bytes_of(tensor, expert * tensor.shape[1] * 4, tensor.shape[1] * 4)
                made[role] = torch.from_numpy(raw.copy().view(np.float32))
        if "gate_up" in made:
            made["gate"], made["up"] = made["gate_up"].chunk(2)
        return [made["gate"], made["up"], made["down"]]

    def close(self) -> None:
        """Lets go of the files (their mappings end with the last view)."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _count(keys: dict[str, Any]) -> int | None:
    """Blocks that run: without those that predict further tokens."""
    arch = keys.get("general.architecture")
    blocks, ahead = keys.get(f"{arch}.block_count"), keys.get(f"{arch}.nextn_predict_layers") or 0
    if blocks is None:
        return None
    if not isinstance(blocks, int) or not isinstance(ahead, int):
        raise InputError(
            f"cannot read {arch}.block_count: got {blocks!r} less {ahead!r}; expected integers; download it again"
        )
    return blocks - ahead
