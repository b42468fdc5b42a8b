"""What makes a trace valid. Every fault is one `TraceError` line that names the array.

Legend: N tokens, L MoE layers, K top-k, E experts, S sequences, D hidden size.
"""

from dataclasses import fields
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from rgpu.errors import TraceError
from rgpu.traces.trace import SCHEMA_VERSION, SHARDED, Trace, TraceHeader

DTYPES = {
    "seq_offsets": "int64",
    "positions": "int32",
    "passes": "int32",
    "weights": "float16",
    "phase": "uint8",
    "token_ids": "int32",
    "hidden": "float16",
    "router_logits": "float16",
    "pre_attention": "float16",
}
_CHUNK = 1 << 16
_FINITE_BYTES = 64 << 20


def id_dtype(experts: int) -> np.dtype:
    """dtype of `expert_ids`: uint8 up to 255 experts, else uint16; its maximum marks "not recorded"."""
    return np.dtype(np.uint8 if experts <= 255 else np.uint16)


def validate(trace: Trace, name: str = "trace", checksum: bool = True) -> Trace:
    """Check a whole trace and return it; `name` opens the error line; `checksum=False` skips the sha256.

    Raises `TraceError` for a wrong schema version, dtype or shape, an empty trace, offsets that do not rise from 0 to
    N, negative positions, passes that are negative or fall within a sequence, ids out of range or twice in a token,
    NaN or infinite floats, and a checksum that does not match.
    """
    try:
        _header(trace.header)
        _layout(trace)
        _order(trace)
        _experts(trace)
        for array in ("weights", "router_logits", *SHARDED):
            _finite(array, getattr(trace, array))
        if checksum and trace.header.checksum and trace.checksum() != trace.header.checksum:
            raise TraceError("checksum mismatch: got arrays that differ from the recorded sha256; copy the file again")
    except TraceError as error:
        raise TraceError(f"{name}: {error}") from None
    return trace


def header_from_json(document: dict[str, Any]) -> TraceHeader:
    """A checked header from its JSON document; keys it does not know are ignored."""
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise TraceError(f"wrong schema_version: got {version!r}; expected {SCHEMA_VERSION}; record it again")
    known = {f.name for f in fields(TraceHeader)}
    lacking = [key for key in ("model", "num_experts", "top_k", "layer_ids") if key not in document]
    if lacking:
        raise TraceError(f"header lacks '{lacking[0]}'; expected a header that rgpu wrote; record it again")
    header = TraceHeader(**{key: value for key, value in document.items() if key in known})
    _header(header)
    return header


def _header(header: TraceHeader) -> None:
    if header.schema_version != SCHEMA_VERSION:
        raise TraceError(f"wrong schema_version: got {header.schema_version!r}; expected {SCHEMA_VERSION}")
    numbers = (header.num_experts, header.top_k)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise TraceError(f"header: got num_experts {numbers[0]!r} and top_k {numbers[1]!r}; expected integers")
    if not 1 <= header.top_k <= header.num_experts < 65535:
        raise TraceError(
            f"header: got {header.num_experts} experts and top_k {header.top_k}; expected 1 <= top_k <= experts"
        )
    for key in ("layer_ids", "expert_bytes"):
        value = getattr(header, key)
        if not isinstance(value, list) or not all(isinstance(v, int) and v >= 0 for v in value):
            raise TraceError(f"header: got {key} {str(value)[:60]}; expected a list of integers >= 0")
    if not isinstance(header.sequences, list) or not all(isinstance(s, dict) for s in header.sequences):
        raise TraceError("header: got 'sequences' that is not a list of objects; record the trace again")


def _layout(trace: Trace) -> None:
    """dtypes and shapes of every array and of the header's lists."""
    ids, header = trace.expert_ids, trace.header
    if ids.ndim != 3:
        raise TraceError(f"array 'expert_ids': got shape {ids.shape}; expected [tokens, layers, top_k]")
    count, layers, top_k = ids.shape
    if count == 0:
        raise TraceError("empty trace: got 0 tokens; expected one or more; record it again")
    if layers == 0 or layers != len(header.layer_ids):
        raise TraceError(
            f"array 'expert_ids': got {layers} layers; expected {len(header.layer_ids)}, as layer_ids says"
        )
    if top_k != header.top_k:
        raise TraceError(
            f"array 'expert_ids': got {top_k} experts a token; expected top_k {header.top_k} of the header"
        )
    if header.expert_bytes and len(header.expert_bytes) != layers:
        raise TraceError(f"header: got {len(header.expert_bytes)} expert_bytes; expected {layers}, one a layer")
    width = trace.hidden.shape[2] if trace.hidden is not None and trace.hidden.ndim == 3 else None
    rows: dict[str, tuple[int | None, ...]] = {
        "expert_ids": ids.shape, "seq_offsets": (None,), "positions": (count,), "passes": (count,),
        "weights": ids.shape, "phase": (count,), "token_ids": (count,), "hidden": (count, layers, None),
        "router_logits": (count, layers, header.num_experts),
        "pre_attention": (count, layers, width),
    }  # fmt: skip
    dtypes = DTYPES | {"expert_ids": id_dtype(header.num_experts).name}
    for name, array in trace.arrays().items():
        if array.dtype.name != dtypes[name]:
            raise TraceError(f"array '{name}': got dtype {array.dtype.name}; expected {dtypes[name]}")
        expected = rows[name]
        if array.ndim != len(expected) or any(e not in (None, a) for e, a in zip(expected, array.shape, strict=True)):
            wanted = "[" + ", ".join("any" if e is None else str(e) for e in expected) + "]"
            raise TraceError(f"array '{name}': got shape {list(array.shape)}; expected {wanted}")


def _order(trace: Trace) -> None:
    offsets, count = trace.seq_offsets, trace.tokens
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != count:
        ends = f"{offsets[0]} to {offsets[-1]}" if len(offsets) else "nothing"
        raise TraceError(f"array 'seq_offsets': got {ends}; expected 0 to {count}, the number of tokens")
    steps = np.diff(offsets)
    if (steps <= 0).any():
        raise TraceError(f"array 'seq_offsets': got a step of {steps.min()} tokens; expected rising offsets")
    if trace.header.sequences and len(trace.header.sequences) != trace.sequences:
        raise TraceError(
            f"header: got {len(trace.header.sequences)} sequences; expected {trace.sequences}, as seq_offsets says"
        )
    for name in ("positions", "passes"):
        if (low := getattr(trace, name).min()) < 0:
            raise TraceError(f"array '{name}': got {low}; expected 0 or more")
    falling = np.diff(trace.passes) < 0
    falling[offsets[1:-1] - 1] = False  # a new sequence may start at any pass
    if falling.any():
        raise TraceError(
            f"array 'passes': got a falling pass at token {int(np.argmax(falling)) + 1}; "
            "expected none within a sequence"
        )
    if trace.phase is not None and (high := trace.phase.max()) > 2:
        raise TraceError(f"array 'phase': got {high}; expected 0 prompt, 1 decode or 2 padding")


def _experts(trace: Trace) -> None:
    ids_NLK, experts, missing = trace.expert_ids, trace.header.num_experts, trace.missing
    wanted = f"expected 0 to {experts - 1}, or {missing} for not recorded"
    for start in range(0, len(ids_NLK), _CHUNK):
        part = ids_NLK[start : start + _CHUNK]
        if int(part.max()) >= experts:
            bad = (part >= experts) & (part != missing)
            if bad.any():
                token, layer, _ = (int(i) for i in np.argwhere(bad)[0])
                raise TraceError(
                    f"array 'expert_ids': got id {part[bad][0]} at token {start + token}, layer {layer}; {wanted}"
                )
        twice = _duplicates(part, missing)
        if twice.any():
            token, layer = (int(i) for i in np.argwhere(twice)[0])
            raise TraceError(
                f"array 'expert_ids': got an expert twice at token {start + token}, layer {layer}; expected each once"
            )


def _duplicates(ids_NLK: np.ndarray, missing: int) -> np.ndarray:
    """bool [N, L]: rows that name an expert twice. Few columns: all pairs; many: sorted neighbours."""
    width = ids_NLK.shape[2]
    twice = np.zeros(ids_NLK.shape[:2], bool)
    if width > 8:
        ids_NLK, pairs = np.sort(ids_NLK, axis=2), list(pairwise(range(width)))
    else:
        ids_NLK, pairs = ids_NLK, list(combinations(range(width), 2))
    columns = [np.ascontiguousarray(ids_NLK[..., i]) for i in range(width)]
    for i, j in pairs:
        twice |= (columns[i] == columns[j]) & (columns[i] != missing)
    return twice


def _finite(name: str, array: np.ndarray | None) -> None:
    """No NaN, no infinity, read from the exponent bits of float16."""
    if array is None:
        return
    step = max(1, _FINITE_BYTES // (2 * int(np.prod(array.shape[1:], dtype=np.int64))))  # hidden states may be mapped
    for start in range(0, len(array), step):
        bad = (array[start : start + step].view(np.uint16) & 0x7C00) == 0x7C00
        if bad.any():
            token = start + int(np.argwhere(bad)[0][0])
            raise TraceError(
                f"array '{name}': got NaN or infinity at token {token}; expected finite numbers; record it again"
            )
