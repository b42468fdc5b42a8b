"""Where the experts of a safetensors checkpoint are, by the names of its tensors, and the tensors of one of them.

Legend: E experts a layer, I expert width, D hidden size.
"""

import re
from pathlib import Path

import torch

from rgpu.checkpoint.files import TensorFiles
from rgpu.checkpoint.module import Module
from rgpu.errors import InputError

_SINGLE = re.compile(
    r"^(.*\.(\d+)\.(?:\w+\.)*experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3))\.(\w+(?:\.\w+)*)$"
)
_STACKED = re.compile(
    r"^(.*\.(\d+)\.(?:(?:\w+\.)*experts\.(?:gate_up_proj|down_proj)|block_sparse_moe\.(?:input_linear|output_linear)))"
    r"(?:[._](\w+(?:\.\w+)*))?$"
)
_KIND = {
    "gate_up_proj": "gate_up_proj",
    "down_proj": "down_proj",
    "input_linear": "gate_up_proj",
    "output_linear": "down_proj",
}
_PREDICTION = re.compile(r"(^|\.)mtp\.")  # extra layers that predict further tokens; no part of the model that runs
_ROLE = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_SUFFIX = {None: "weight", "scale_inv": "weight_scale_inv"}
ROLES = ("gate", "up", "down")


class ExpertTensors:
    """The routed experts of the checkpoint in `folder`: of single experts (`...experts.N.gate_proj.*`, `up_proj`,
    `down_proj`, or `w1`, `w3`, `w2`) or stacked (`...experts.gate_up_proj*` [E, ...] and `down_proj*`; Granite's
    `block_sparse_moe.input_linear` and `output_linear`).

    `layer_ids` are the model's layer numbers that hold experts, below `layers` where that is given. `interleaved`: a
    stacked gate_up alternates rows of gate and up (gpt-oss) instead of holding one after the other. Stacked floats that
    are transposed ([E, D, 2I], [E, I, D]) are told by their shapes. Raises `InputError` for a checkpoint without such
    experts and one in which an expert or a projection is missing.
    """

    def __init__(self, folder: Path, *, interleaved: bool = False, layers: int | None = None) -> None:
        self.folder = folder
        self.files = TensorFiles(folder)
        self.interleaved = interleaved
        self._single: dict[tuple[int, int, str], dict[str, str]] = {}
        self._stacked: dict[tuple[int, str], dict[str, str]] = {}
        self._stem: dict[tuple[int, int, str] | tuple[int, str], str] = {}
        for name in self.files:
            self._note(name, layers)
        found = {key[0] for key in self._stem}
        if not found:
            raise InputError(
                f"no routed experts in {folder}: got tensors without '...experts.N.gate_proj.weight' or "
                "'...experts.gate_up_proj'; expected a Qwen3-MoE, OLMoE, Mixtral or gpt-oss style checkpoint"
            )
        self.layer_ids = tuple(sorted(found))
        self.experts = self._count()
        self.transposed = self._is_transposed()

    def _note(self, name: str, layers: int | None) -> None:
        single, stacked = _SINGLE.match(name), _STACKED.match(name)
        match = single or stacked
        if match is None or _PREDICTION.search(name) or (layers is not None and int(match[2]) >= layers):
            return
        key: tuple[int, int, str] | tuple[int, str]
        if single:
            key = int(single[2]), int(single[3]), _ROLE[single[4]]
            names, suffix = self._single.setdefault(key, {}), single[5]
        else:
            key = int(match[2]), _KIND[match[1].rpartition(".")[2]]
            names, suffix = self._stacked.setdefault(key, {}), _SUFFIX.get(match[3], match[3])
        if names.setdefault(suffix, name) != name or self._stem.setdefault(key, match[1]) != match[1]:
            raise InputError(
                f"cannot read {self.folder}: got the same experts as {self._stem[key]} and {name}; expected one model's layers"
            )

    def _count(self) -> int:
        counts = {1 + expert for _, expert, _ in self._single}
        for key in self._stacked:
            counts.add(self._stacked_count(key))
        experts = max(counts)
        for layer in self.layer_ids:
            stacked = [kind for kind in ("gate_up_proj", "down_proj") if (layer, kind) in self._stacked]
            if len(stacked) == 2 and all(self._stacked_count((layer, kind)) == experts for kind in stacked):
                continue
            for expert in range(experts):
                for role in ROLES:
                    if (layer, expert, role) not in self._single:
                        raise InputError(
                            f"incomplete checkpoint {self.folder}: got no {role} projection of expert {expert} in layer "
                            f"{layer}; expected every expert of every MoE layer; download it again"
                        )
        return experts

    def _stacked_count(self, key: tuple[int, str]) -> int:
        shapes = {name: self.files.shape(name) for name in self._stacked[key].values()}
        counts = {shape[0] if shape else 0 for shape in shapes.values()}
        if len(counts) > 1 or 0 in counts:
            raise InputError(
                f"cannot read {self.folder}: got {', '.join(f'{name} {list(s)}' for name, s in shapes.items())}; expected "
                "tensors with one entry for each expert"
            )
        return counts.pop()

    def _is_transposed(self) -> bool:
        names = [
            self._stacked.get((self.layer_ids[0], kind), {}).get("weight") for kind in ("gate_up_proj", "down_proj")
        ]
        if names[0] is None or names[1] is None:
            return False
        wide, narrow = (self.files.shape(name)[1:] for name in names if name)
        plain = len(wide) == 2 and wide == (2 * narrow[-1], narrow[0])
        if not plain and wide != (narrow[-1], 2 * narrow[0]):
            raise InputError(
                f"cannot read {self.folder}: got {names[0]} {list(wide)} and {names[1]} {list(narrow)} for each expert; "
                "expected [2I, D] and [D, I], or [D, 2I] and [I, D]"
            )
        return not plain

    def modules(self, layer: int, expert: int) -> tuple[Module, Module, Module]:
        """Gate, up and down of one expert (`layer` is the model's number); reads no other expert."""
        if layer not in self.layer_ids or not 0 <= expert < self.experts:
            raise InputError(
                f"no expert {expert} in layer {layer} of {self.folder}: got layers {list(self.layer_ids)} of "
                f"{self.experts} experts"
            )
        if (layer, "gate_up_proj") in self._stacked:
            return self._split(layer, expert)
        gate, up, down = (self._read_single(layer, expert, role) for role in ROLES)
        return gate, up, down

    def _read_single(self, layer: int, expert: int, role: str) -> Module:
        names = self._single[layer, expert, role]
        tensors = {suffix: self.files.read(name) for suffix, name in names.items()}
        return Module(_title(role, expert, layer), self._stem[layer, expert, role], tensors, names)

    def _split(self, layer: int, expert: int) -> tuple[Module, Module, Module]:
        made: dict[str, dict[str, torch.Tensor]] = {role: {} for role in ROLES}
        kinds = {"gate_up_proj": self._stacked[layer, "gate_up_proj"], "down_proj": self._stacked[layer, "down_proj"]}
        for kind, names in kinds.items():
            for suffix, name in names.items():
                tensor = self.files.read(name, expert)
                if self.transposed and tensor.dim() == 2:
                    tensor = tensor.T
                if kind == "down_proj":
                    made["down"][suffix] = tensor
                    continue
                if not tensor.dim() or tensor.shape[0] % 2:
                    raise InputError(
                        f"cannot read {name}: got {list(tensor.shape)} for each expert; expected as many rows of gate as of up"
                    )
                made["gate"][suffix], made["up"][suffix] = (
                    (tensor[0::2], tensor[1::2]) if self.interleaved else tensor.chunk(2)
                )
        found = []
        for role in ROLES:
            kind = "down_proj" if role == "down" else "gate_up_proj"
            title, stem = _title(role, expert, layer), self._stem[layer, kind]
            found.append(Module(title, stem, made[role], kinds[kind], stacked=True, joined=role != "down"))
        return found[0], found[1], found[2]

    def close(self) -> None:
        """Drops the file handles (and their mappings)."""
        self.files.close()


def _title(role: str, expert: int, layer: int) -> str:
    return f"{role} projection of expert {expert} of layer {layer}"
