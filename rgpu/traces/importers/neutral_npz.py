"""Neutral routing records: `<name>.npz` with a sidecar `<name>.json`.

Arrays: `expert_ids` int [N, L, K] in rank order (-1: not recorded), `seq_offsets` int64 [S + 1], `positions` int32 [N],
optional `weights` float16 [N, L, K] and `phase` (0 prompt, 1 decode). The sidecar names the model, `num_experts`,
`top_k`, `moe_layer_ids`, `phase` in words, `seq_meta` (one object a sequence) and the file's sha256.
"""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.errors import TraceError
from rgpu.traces.trace import DECODE, Trace, TraceHeader
from rgpu.traces.validate import id_dtype

# Expert geometry of known models: (bytes of one expert as stored, storage format). gpt-oss (hidden 2880, width 2880):
# gate_up 5760 x 2880 and down 2880 x 2880 in MXFP4 (17 bytes for 32 values), biases 5760 + 2880 in bfloat16.
_GPT_OSS = ((5760 * 2880 + 2880 * 2880) * 17 // 32 + 2 * (5760 + 2880), "mxfp4")
EXPERT_STORAGE = {"openai/gpt-oss-20b": _GPT_OSS, "openai/gpt-oss-120b": _GPT_OSS}


def load_neutral(path: Path, verify: bool = True) -> Trace:
    """Read a neutral record as a `Trace` (not yet validated); every token is its own forward pass (batch 1 decode).

    `verify` compares the file with the sidecar's sha256. Raises `TraceError` for a corrupt archive, a missing or
    unreadable sidecar, a missing array and ids out of range.
    """
    arrays = _arrays(path)
    side = _sidecar(path)
    if verify and side.get("sha256") and _sha256(path) != side["sha256"]:
        raise TraceError(f"cannot use trace {path}: checksum mismatch with its sidecar; copy the file again")
    experts = side["num_experts"]
    ids = arrays["expert_ids"]
    if ids.ndim != 3 or ids.dtype.kind not in "iu":
        raise TraceError(
            f"cannot use trace {path}: array 'expert_ids': got {ids.dtype} {ids.shape}; expected integers [N, L, K]"
        )
    if ids.size and (int(ids.min()) < -1 or int(ids.max()) >= experts):
        span = f"{ids.min()} to {ids.max()}"
        raise TraceError(f"cannot use trace {path}: array 'expert_ids': got ids {span}; expected -1 to {experts - 1}")
    count, layers, width = (int(n) for n in ids.shape)
    recorded = ids >= 0
    weights, phase = arrays.get("weights"), arrays.get("phase")
    if weights is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            weights = weights.astype(np.float16)
        if weights.shape == ids.shape and not recorded.all():
            weights = np.where(recorded, weights, np.float16(0))
    if phase is None and str(side.get("phase", "")).lower().startswith("decode only"):
        phase = np.full(count, DECODE, np.uint8)
    size, quantisation = EXPERT_STORAGE.get(str(side.get("model")), (0, "unknown"))
    header = TraceHeader(
        model=str(side.get("model", path.stem)),
        num_experts=experts,
        top_k=side.get("top_k", width),
        layer_ids=side.get("moe_layer_ids", list(range(layers))),
        expert_bytes=[size] * layers if size else [],
        quantisation=quantisation,
        sequences=[_sequence(meta) for meta in side.get("seq_meta", [])],
        provenance={
            "file": path.name, "sha256": side.get("sha256", ""), "source": side.get("source", {}),
            "recorded": side.get("provenance", ""), "prefill": phase is None or bool((phase == 0).any()),
        },
    )  # fmt: skip
    return Trace(
        header=header,
        expert_ids=ids.astype(id_dtype(experts)),  # -1 wraps to the marker
        seq_offsets=arrays["seq_offsets"].astype(np.int64),
        positions=arrays["positions"].astype(np.int32),
        passes=np.arange(count, dtype=np.int32),
        weights=weights,
        phase=None if phase is None else phase.astype(np.uint8),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = ("expert_ids", "seq_offsets", "positions", "weights", "phase")
            arrays = {name: file[name] for name in wanted if name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise TraceError(f"cannot read {path}: got a corrupt or truncated npz ({reason}); copy it again") from None
    lacking = [name for name in wanted[:3] if name not in arrays]
    if lacking:
        raise TraceError(f"cannot use trace {path}: got no array '{lacking[0]}'; expected {', '.join(wanted[:3])}")
    return arrays


def _sidecar(path: Path) -> dict[str, Any]:
    file = path.with_suffix(".json")
    try:
        side = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TraceError(
            f'cannot use trace {path}: got no sidecar {file.name}; expected {{"model": .., "num_experts": ..}} there; '
            "the number of experts is not in the arrays"
        ) from None
    except (OSError, ValueError) as error:
        raise TraceError(
            f"cannot read {file}: got an unreadable sidecar ({error}); expected JSON; copy it again"
        ) from None
    metas = side.get("seq_meta", []) if isinstance(side, dict) else []
    if not isinstance(metas, list) or not all(isinstance(meta, dict) for meta in metas):
        raise TraceError(f"cannot use {file}: got 'seq_meta' that is not a list of objects; expected one a sequence")
    if not isinstance(side, dict) or not isinstance(side.get("num_experts"), int) or side["num_experts"] < 1:
        raise TraceError(
            f"cannot use {file}: got no 'num_experts'; expected the experts of a layer; add it to the sidecar"
        )
    return side


def _sequence(meta: dict[str, Any]) -> dict[str, Any]:
    """A sequence's own keys, with `domain` and `document` as the rest of rgpu reads them."""
    described: dict[str, Any] = {"kind": "generation", **meta}
    if "dataset" in meta:
        described.setdefault("domain", meta["dataset"])
        described.setdefault("document", f"{meta['dataset']}/{meta.get('row_index', '')}")
    return described


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
