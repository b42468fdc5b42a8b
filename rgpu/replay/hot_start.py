"""A hot profile: how often each expert was used, kept from run to run, and the initial fill of pools that it gives.

Legend: L MoE layers, E experts.
"""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rgpu.errors import InputError
from rgpu.replay.pool import Layout
from rgpu.results.provenance import write_atomic
from rgpu.types import MoEShape

VERSION = "1"


def hot_keys(uses_LE: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """int32 keys that fill each pool: its most used experts, as many as it has slots, the most used last (so that a policy
    that goes by recency gives them up last); ties to the lower key. Experts never used are left out."""
    fill = []
    for p in range(layout.pools):
        uses_K = uses_LE[layout.pool_of == p].reshape(-1)
        order = np.argsort(-uses_K, kind="stable")[: layout.main[p]]
        fill.append(order[uses_K[order] > 0][::-1].astype(np.int32))
    return fill


def save_profile(path: Path, uses_LE: np.ndarray, model: str) -> None:
    """Write int64 [L, E] uses to a .safetensors file, whole or not at all."""
    about = {"rgpu": "hot profile", "schema_version": VERSION, "model": model}
    write_atomic(path, save({"uses": np.ascontiguousarray(uses_LE, np.int64)}, {"about": json.dumps(about)}))


def load_profile(path: Path, shape: MoEShape) -> np.ndarray:
    """int64 [L, E]. `InputError` for another kind of file and for a profile of a model of another shape."""
    remedy = "make one with rgpu generate profile_out=hot.safetensors"
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            uses_LE: np.ndarray = file.get_tensor("uses") if about.get("schema_version") == VERSION else np.zeros(0)
    except (OSError, SafetensorError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"profile: cannot read {path}: got {line}; expected a hot profile; {remedy}") from None
    if uses_LE.shape != (shape.layers, shape.experts) or (uses_LE < 0).any():
        raise InputError(
            f"profile: got {path} of {list(uses_LE.shape)} uses; expected [{shape.layers}, {shape.experts}], the model's MoE "
            f"layers and experts; {remedy}"
        )
    return uses_LE
