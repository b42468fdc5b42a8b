"""Expert signatures: what a projection is compared with. Legend: E experts, F feature width, D hidden size, L layers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.calibration import mean_inputs, routing_vectors

ROUTER = re.compile(r"layers\.(\d+)\.(?:mlp\.gate|mlp\.router|block_sparse_moe\.gate)\.weight$")


def features(trace: Any, layer: int, feature: str) -> np.ndarray:
    """float64 [N, F]: what the policy would have seen of every token of the layer."""
    x_NF = trace.hidden[:, layer] if feature == "hidden" else routing_vectors(trace, layer, slice(None))
    return np.asarray(x_NF, np.float64)


def unit_rows(x_EF: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; zeros stay."""
    length_E = np.linalg.norm(x_EF, axis=1, keepdims=True)
    return np.divide(x_EF, length_E, out=np.zeros_like(x_EF), where=length_E > 0)


def mean_windows(x_NF: np.ndarray, routed_NE: np.ndarray) -> np.ndarray:
    """float64 [E, F]: mean input of the rows routed to each expert, centred on the mean of all, of length 1."""
    count_E = routed_NE.sum(0)[:, None]
    total_EF = routed_NE.T.astype(np.float64) @ x_NF
    mean_EF = np.divide(total_EF, count_E, out=np.zeros_like(total_EF), where=count_E > 0)
    return unit_rows(np.where(count_E > 0, mean_EF - x_NF.mean(0), 0.0))


def mean_signatures(trace: Any, layer: int, driver: int, feature: str) -> np.ndarray:
    """float64 [E, F]: mean input at layer `driver` of the tokens that `layer` routes to each expert, centred, unit."""
    if layer == driver:
        return mean_inputs(trace, layer, feature)
    return mean_windows(features(trace, driver, feature), routing_vectors(trace, layer, slice(None)) > 0)


def read_routers(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Router weights float64 [L, E, D] and biases [L, E] (0 where there are none) of a checkpoint folder or file.

    Reads only those tensors, stored as bf16, f16 or f32. `InputError` where they cannot be had.
    """
    remedy = "set policy.router to the model's folder or .safetensors file"
    if not path:
        raise InputError(f"policy.router: got none; expected the checkpoint whose router rows are signatures; {remedy}")
    folder = Path(path)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    weights: dict[int, np.ndarray] = {}
    biases: dict[int, np.ndarray] = {}
    try:
        for file in files:
            for name, array in _tensors(file).items():
                layer, kind = name
                (weights if kind == "weight" else biases)[layer] = array
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"policy.router: cannot read {path}: {error}; expected a checkpoint; {remedy}") from None
    if not weights:
        raise InputError(f"policy.router: got {path} without a router; expected an MoE checkpoint; {remedy}")
    rows = [weights[layer] for layer in sorted(weights)]
    bias = [biases.get(layer, np.zeros(len(weights[layer]))) for layer in sorted(weights)]
    return np.stack(rows), np.stack(bias)


def _tensors(file: Path) -> dict[tuple[int, str], np.ndarray]:
    """Router tensors of one file by (layer, "weight" or "bias"). The format is read by hand: numpy has no bf16."""
    found = {}
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > file.stat().st_size:
            raise ValueError("not a safetensors file")
        header = json.loads(stream.read(size))
        for name, entry in header.items():
            match = ROUTER.search(name.removesuffix("bias") + "weight" if name.endswith("bias") else name)
            if not match:
                continue
            begin, end = entry["data_offsets"]
            stream.seek(8 + size + begin)
            raw = stream.read(end - begin)
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
            kind = "bias" if name.endswith("bias") else "weight"
            found[int(match[1]), kind] = values.astype(np.float64).reshape(entry["shape"])
    return found
