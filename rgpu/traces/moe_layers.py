"""What can be read off a transformers model about its routed experts, without importing torch."""

import hashlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgpu.errors import InputError

_FLAGS = ("is_transposed", "is_concatenated", "has_gate")  # set by transformers' use_experts_implementation
_HASHED_WHOLE = 256 << 20
_EDGE = 1 << 20


@dataclass(frozen=True, slots=True)
class MoELayer:
    """One MoE layer: `name` of its experts module, `layer_id` in the model, the modules (router: None if unknown)."""

    name: str
    layer_id: int
    experts: Any
    router: Any

    @property
    def num_experts(self) -> int:
        count = getattr(self.experts, "num_experts", None)
        return int(count) if count is not None else int(next(iter(self.experts.parameters())).shape[0])

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's parameters as they are in memory (0 where the module holds none)."""
        return int(sum(p.numel() * p.element_size() for p in self.experts.parameters()) // self.num_experts)


def moe_layers(model: Any) -> list[MoELayer]:
    """The MoE layers in order of execution: every module that goes through transformers' experts interface.

    Raises `InputError` for a model without any and for layers that differ in the number of experts.
    """
    modules = dict(model.named_modules())
    found: list[MoELayer] = []
    for name, module in modules.items():
        if all(hasattr(module, flag) for flag in _FLAGS):
            numbers = re.findall(r"(?:^|\.)(\d+)(?=\.)", name)
            parent = modules.get(name.rpartition(".")[0])
            found.append(MoELayer(name, int(numbers[-1]) if numbers else len(found), module, _router(parent)))
    if not found:
        raise InputError(
            f"cannot use model {type(model).__name__}: got no Mixture-of-Experts layer; expected a transformers model "
            "that goes through its experts interface; choose a MoE model such as Qwen3-MoE, OLMoE, Mixtral or gpt-oss"
        )
    counts = {layer.num_experts for layer in found}
    if len(counts) > 1:
        raise InputError(
            f"cannot use model: got layers of {sorted(counts)} experts; expected one number; choose another model"
        )
    return found


def decoder_layer(model: Any, layer: MoELayer) -> Any:
    """The module of the model's list of layers that an MoE layer is in: what it is called with is the state before attention.

    Raises `InputError` where the experts are in no numbered layer.
    """
    found = re.match(r"(?:.*\.)?\d+(?=\.)", layer.name)
    if found is None:
        raise InputError(
            f"cannot see the state before attention of {layer.name}: got experts in no numbered layer; expected names such "
            "as model.layers.0.mlp.experts; choose another model, or leave pre_attention out"
        )
    return model.get_submodule(found[0])


def entering(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The residual stream [T, D] that a call of a decoder layer gets, rows in the order of the experts' input."""
    x_BQD = args[0] if args else kwargs[first_parameter(module)]
    return x_BQD.reshape(-1, x_BQD.shape[-1])


def first_parameter(module: Any) -> str:
    """What a module calls its first argument."""
    return next(iter(inspect.signature(module.forward).parameters))


def _router(parent: Any) -> Any:
    if parent is None:
        return None
    children = dict(parent.named_children())
    named = [child for name, child in children.items() if name in ("gate", "router")]
    typed = [child for child in children.values() if type(child).__name__.endswith("Router")]
    return (typed or named or [None])[0]


def model_identity(model: Any) -> tuple[str, str]:
    """(id, revision): the hub name or the folder's name; the commit, or a sha256 over the config and the weight files.

    Weight files above 256 MiB enter with size, first and last MiB. A model made in memory has its type and no revision.
    """
    config = model.config
    name = str(getattr(config, "name_or_path", "") or getattr(config, "_name_or_path", "") or "")
    folder = Path(name)
    if name and folder.is_dir():
        return folder.resolve().name, folder_revision(folder)
    return name or str(getattr(config, "model_type", type(model).__name__)), str(
        getattr(config, "_commit_hash", None) or ""
    )


def folder_revision(folder: Path) -> str:
    """sha256 over config.json and the names, sizes and contents of the weight files of a local model."""
    digest = hashlib.sha256()
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    for file in files:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as data:
            if size <= _HASHED_WHOLE:
                while block := data.read(_EDGE):
                    digest.update(block)
            else:
                digest.update(data.read(_EDGE))
                data.seek(-_EDGE, 2)
                digest.update(data.read(_EDGE))
    return digest.hexdigest()
