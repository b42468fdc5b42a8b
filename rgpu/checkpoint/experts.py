"""Experts of a safetensors checkpoint, read lazily: one expert at a time, never a whole layer.

Legend: E experts a layer, I expert width, D hidden size.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rgpu.errors import InputError

_SINGLE = re.compile(r"\.(\d+)\.(?:\w+\.)*experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
_STACKED = re.compile(r"\.(\d+)\.(?:\w+\.)*experts\.(gate_up_proj|down_proj)$")
_ROLE = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}


@dataclass(frozen=True, slots=True)
class _Entry:
    file: Path
    key: str


class CheckpointExperts:
    """The routed experts of the checkpoint in `folder`: per-expert keys (`...experts.N.gate_proj.weight`, `up_proj`,
    `down_proj`, or `w1`, `w3`, `w2`) and stacked ones (`...experts.gate_up_proj` [E, 2I, D], `down_proj` [E, D, I]).

    `layer_ids` are the model's layer numbers that hold experts. Raises `InputError` for a folder without a readable
    safetensors checkpoint or without such experts. Use as a context manager: the files stay mapped while it is open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = checkpoint_files(folder)
        self._open: dict[Path, Any] = {}
        self._single: dict[tuple[int, int, str], _Entry] = {}
        self._stacked: dict[tuple[int, str], _Entry] = {}
        for file in self.files:
            for key in self._handle(file).keys():  # noqa: SIM118  (a safetensors handle is no dict)
                self._note(file, key)
        layers = {layer for layer, _, _ in self._single} | {layer for layer, _ in self._stacked}
        if not layers:
            raise InputError(
                f"no routed experts in {folder}: got tensors without '...experts.N.gate_proj.weight' or "
                "'...experts.gate_up_proj'; expected a Qwen3-MoE or OLMoE style checkpoint"
            )
        self.layer_ids = tuple(sorted(layers))
        self.experts, self.intermediate, self.hidden = self._geometry()

    def _note(self, file: Path, key: str) -> None:
        if found := _SINGLE.search(key):
            layer, expert, name = found.groups()
            self._single[int(layer), int(expert), _ROLE[name]] = _Entry(file, key)
        elif found := _STACKED.search(key):
            layer, name = found.groups()
            self._stacked[int(layer), name] = _Entry(file, key)

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, "pt")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"cannot read {file}: got {_line(error)}; expected a complete safetensors file; download it again"
                ) from None
        return self._open[file]

    def _slice(self, entry: _Entry) -> Any:
        return self._handle(entry.file).get_slice(entry.key)

    def _geometry(self) -> tuple[int, int, int]:
        first = self.layer_ids[0]
        if (first, "gate_up_proj") in self._stacked:
            experts, doubled, hidden = self._slice(self._stacked[first, "gate_up_proj"]).get_shape()
            return experts, doubled // 2, hidden
        experts = 1 + max(e for _, e, _ in self._single)
        intermediate, hidden = self._slice(self._find(first, 0, "gate")).get_shape()
        return experts, intermediate, hidden

    def _find(self, layer: int, expert: int, role: str) -> _Entry:
        entry = self._single.get((layer, expert, role))
        if entry is None:
            raise InputError(
                f"incomplete checkpoint {self.folder}: got no {role} projection of expert {expert} in layer {layer}; "
                "expected every expert of every MoE layer; download it again"
            )
        return entry

    def read(self, layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`gate` [I, D], `up` [I, D] and `down` [D, I] of one expert (`layer` is the model's number), stored dtype."""
        if (layer, "gate_up_proj") in self._stacked:
            both = self._slice(self._stacked[layer, "gate_up_proj"])[expert]
            gate, up = both.chunk(2)
            down = self._slice(self._stacked[layer, "down_proj"])[expert]
        else:
            gate, up, down = (self._slice(self._find(layer, expert, role))[:] for role in ("gate", "up", "down"))
        wide, narrow = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        if tuple(gate.shape) != wide or tuple(up.shape) != wide or tuple(down.shape) != narrow:
            raise InputError(
                f"cannot use {self.folder}: got shapes {tuple(gate.shape)}, {tuple(up.shape)}, {tuple(down.shape)} for "
                f"expert {expert} of layer {layer}; expected {wide}, {wide}, {narrow} as in every other expert"
            )
        return gate, up, down

    def close(self) -> None:
        """Drops the file handles (and their mappings)."""
        self._open.clear()

    def __enter__(self) -> "CheckpointExperts":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a local model folder; `InputError` when there is none or one that the index names is
    missing."""
    if not folder.is_dir():
        raise InputError(f"no model at {folder}: expected a local folder with config.json and safetensors weights")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(
                f"cannot read {index}: got {_line(error)}; expected a weight_map; download it again"
            ) from None
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"] if (folder / "model.safetensors").exists() else []
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        got = f"no {missing[0]}" if missing else "no *.safetensors weights"
        raise InputError(
            f"incomplete model folder {folder}: got {got}; expected safetensors weights; download it again"
        )
    return files


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
