"""One split for every table: sequences that calibrate and train, and sequences that are scored.

Legend: S sequences.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import ConsistencyError, InputError
from rgpu.traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Split:
    """Sequence indices (int64, rising) of both parts, and the sha256 of the manifest that says which is where."""

    calibration: np.ndarray
    scored: np.ndarray
    digest: str


def split(trace: Trace, calibration: float = 0.5, seed: int = 0) -> Split:
    """Divide the sequences by source document, deterministically, about `calibration` of each domain's documents first.

    Sequences that share a document (`document` in the header: a name or a list of names) or a row of a dataset, or that
    are equal token for token, stay together. Order of assignment is by hash of (seed, group). From two groups on both
    parts hold at least one; a single group is scored and nothing calibrates. Raises `InputError` for a share outside
    (0, 1).
    """
    if not 0 < calibration < 1:
        raise InputError(f"cannot split: got calibration={calibration}; expected a share between 0 and 1, such as 0.5")
    owner_S = _groups(trace)
    metas = trace.header.sequences or [{}] * trace.sequences
    groups: dict[int, list[int]] = {}
    for sequence, owner in enumerate(owner_S):
        groups.setdefault(owner, []).append(sequence)
    named = []
    for members in groups.values():
        name = json.dumps(sorted({key for s in members for key in _documents(metas[s], s)}))
        domain = str(metas[members[0]].get("domain", ""))
        named.append((domain, hashlib.sha256(f"{seed}:{name}".encode()).hexdigest(), members))
    named.sort()
    quota = [int(i * calibration + 0.5) for i in range(len(named) + 1)]
    first = [i for i in range(len(named)) if quota[i + 1] > quota[i]]
    first = (first[: len(named) - 1] or [0]) if len(named) >= 2 else []  # both parts hold something
    chosen = set(first)
    parts: dict[bool, list[int]] = {True: [], False: []}
    for i, (_, _, members) in enumerate(named):
        parts[i in chosen].extend(members)
    left, right = sorted(parts[True]), sorted(parts[False])
    manifest: dict[str, Any] = {"seed": seed, "share": calibration, "calibration": left, "scored": right}
    manifest["documents"] = [_documents(meta, s) for s, meta in enumerate(metas)]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return Split(np.asarray(left, np.int64), np.asarray(right, np.int64), digest)


def documents_of(meta: dict[str, Any]) -> list[str]:
    """Source documents that a sequence's header names: `document`, one or a list, else dataset and row; [] for none."""
    document = meta.get("document")
    if isinstance(document, list | tuple) and document:
        return [str(part) for part in document]
    if document:
        return [str(document)]
    return _row_of(meta)


def _row_of(meta: dict[str, Any]) -> list[str]:
    return [f"{meta['dataset']}/{meta['row_index']}"] if "dataset" in meta and "row_index" in meta else []


def origins(trace: Trace) -> set[str]:
    """What its sequences can be known again by in any trace: their documents, and hashes of their tokens and routing."""
    return set[str]().union(*_origins(trace))


def sharing(trace: Trace, known: set[str]) -> np.ndarray:
    """bool [S]: whether a sequence shares an origin with `known`, the `origins` of other traces."""
    return np.array([not own.isdisjoint(known) for own in _origins(trace)], bool)


def held_apart(calibration: Trace, scored: Trace, what: str) -> None:
    """`ConsistencyError` where a sequence of `scored` calibrates, trains or chooses: where it shares a document, a row
    of a dataset or its content with one of `calibration`, whichever of these each trace has. `what` was about to be scored."""
    both = calibration.token_ids is not None and scored.token_ids is not None
    contents = ("tokens",) if both else ("experts",)  # equal tokens are the same text; other texts may be routed alike
    known, told = set[str]().union(*_origins(calibration, contents)), _origins(scored, contents)
    if shared := [sorted(own & known) for own in told if own & known]:
        raise ConsistencyError(
            f"{what}: {len(shared)} of {len(told)} scored sequences also calibrate ({shared[0][0]}); they must be apart"
        )


def _origins(trace: Trace, contents: Sequence[str] = ("tokens", "experts")) -> list[set[str]]:
    metas = trace.header.sequences or [{}] * trace.sequences
    arrays = {"tokens": trace.token_ids, "experts": trace.expert_ids}
    found = [set(documents_of(meta)) | set(_row_of(meta)) for meta in metas]
    for s, own in enumerate(found):
        rows = slice(trace.seq_offsets[s], trace.seq_offsets[s + 1])
        for name in contents:
            if (array := arrays[name]) is not None:
                own.add(f"{name} sha256:{_digest(array[rows])}")
    return found


def _documents(meta: dict[str, Any], sequence: int) -> list[str]:
    return documents_of(meta) or [f"sequence {sequence}"]


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()


def _groups(trace: Trace) -> list[int]:
    """The lowest sequence of each sequence's group: shared documents and equal contents are joined (union-find)."""
    parent = list(range(trace.sequences))

    def root(s: int) -> int:
        while parent[s] != s:
            parent[s] = parent[parent[s]]
            s = parent[s]
        return s

    metas = trace.header.sequences or [{}] * trace.sequences
    content = trace.expert_ids if trace.token_ids is None else trace.token_ids
    first: dict[str, int] = {}
    for s in range(trace.sequences):
        rows = content[trace.seq_offsets[s] : trace.seq_offsets[s + 1]]
        for key in [*_documents(metas[s], s), *_row_of(metas[s]), "sha256:" + _digest(rows)]:
            a, b = root(first.setdefault(key, s)), root(s)
            parent[max(a, b)] = min(a, b)
    return [root(s) for s in range(trace.sequences)]
