"""The `Trace`: what a model's routers decided, token by token, as arrays with a header.

Legend: N tokens, L MoE layers, K top-k, E experts, S sequences, D hidden size.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rgpu.errors import TraceError
from rgpu.traces.shards import taken
from rgpu.types import MoEShape

SCHEMA_VERSION = 1
PROMPT, DECODE, PADDING = 0, 1, 2
REQUIRED = ("expert_ids", "seq_offsets", "positions", "passes")
OPTIONAL = ("weights", "phase", "token_ids", "hidden", "router_logits", "pre_attention")
SHARDED = ("hidden", "pre_attention")  # states, in files of their own beside the trace


@dataclass(slots=True)
class TraceHeader:
    """Everything about a trace that is not an array. `sequences` holds one dict a sequence (domain, document, kind,
    prompt_tokens, `switches`: token offsets at which the topic changes)."""

    model: str
    num_experts: int
    top_k: int
    layer_ids: list[int]
    revision: str = ""
    expert_bytes: list[int] = field(default_factory=list)
    quantisation: str = "none"
    on_policy: bool = True
    sequences: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    checksum: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Trace:
    """Arrays: `expert_ids` uint8 (E <= 255) or uint16 [N, L, K] in rank order, the dtype's maximum marking "not recorded";
    `seq_offsets` int64 [S + 1] (sequences are contiguous); `positions` int32 [N]; `passes` int32 [N] (tokens evaluated in
    one forward pass share a number); optional `weights` float16 [N, L, K], `phase` uint8 [N] (0 prompt, 1 decode,
    2 padding row), `token_ids` int32 [N], `hidden` float16 [N, L, D] (input of the router), `router_logits` float16
    [N, L, E], `pre_attention` float16 [N, L, D] (residual stream that enters the layer, before its norm and attention)."""

    header: TraceHeader
    expert_ids: np.ndarray
    seq_offsets: np.ndarray
    positions: np.ndarray
    passes: np.ndarray
    weights: np.ndarray | None = None
    phase: np.ndarray | None = None
    token_ids: np.ndarray | None = None
    hidden: np.ndarray | None = None
    router_logits: np.ndarray | None = None
    pre_attention: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        return int(self.expert_ids.shape[0])

    @property
    def layers(self) -> int:
        return int(self.expert_ids.shape[1])

    @property
    def sequences(self) -> int:
        return len(self.seq_offsets) - 1

    @property
    def missing(self) -> int:
        """The id that marks "not recorded"."""
        return int(np.iinfo(self.expert_ids.dtype).max)

    @property
    def shape(self) -> MoEShape:
        sizes = tuple(self.header.expert_bytes)
        states = self.pre_attention if self.hidden is None else self.hidden
        hidden = 0 if states is None else int(states.shape[2])
        ids = tuple(self.header.layer_ids)
        return MoEShape(self.layers, self.header.num_experts, self.header.top_k, hidden, sizes, ids)

    def arrays(self) -> dict[str, np.ndarray]:
        """Present arrays by name, required ones first."""
        named = {name: getattr(self, name) for name in (*REQUIRED, *OPTIONAL)}
        return {name: array for name, array in named.items() if array is not None}

    def require(self, name: str, why: str) -> np.ndarray:
        """The optional array `name`, or a `TraceError` naming it and who needs it."""
        array: np.ndarray | None = getattr(self, name)
        if array is None:
            raise TraceError(
                f"{why} needs the array '{name}': got a trace with {', '.join(self.arrays())}; "
                f"record one with rgpu record {name}=true, or choose another"
            )
        return array

    def select(self, sequences: np.ndarray) -> "Trace":
        """The trace of some sequences, in the given order; passes are renumbered so that sequences follow one another.

        Only for traces whose passes hold one sequence each (batch 1): a batch cannot be cut without changing its events.
        """
        if batched(self):
            raise TraceError(
                "cannot select sequences: got passes that mix sequences; expected batch 1; use reset=batch"
            )
        spans = [np.arange(self.seq_offsets[s], self.seq_offsets[s + 1]) for s in sequences]
        rows = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        offsets = np.concatenate([[0], np.cumsum([len(s) for s in spans])]).astype(np.int64)
        passes = np.empty(len(rows), np.int32)
        count = 0
        for s, span in enumerate(spans):
            _, inverse = np.unique(self.passes[span], return_inverse=True)
            passes[offsets[s] : offsets[s + 1]] = inverse + count
            count += int(inverse.max()) + 1 if len(span) else 0
        header = TraceHeader(**{**self.header.to_json(), "checksum": ""})
        header.sequences = [self.header.sequences[s] for s in sequences] if self.header.sequences else []
        kept = {n: taken(a, rows) for n, a in self.arrays().items() if n not in ("seq_offsets", "passes")}
        return Trace(header=header, seq_offsets=offsets, passes=passes, **kept)

    def checksum(self) -> str:
        """sha256 over the arrays in canonical order; states, which live in files of their own, aside."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            if name in SHARDED:
                continue
            digest.update(name.encode())
            for start in range(0, len(array), 65536):
                digest.update(np.ascontiguousarray(array[start : start + 65536]).tobytes())
        return digest.hexdigest()


def batched(trace: Trace) -> bool:
    """Whether any forward pass holds tokens of more than one sequence."""
    sequence = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
    order = np.lexsort((sequence, trace.passes))
    passes, owners = trace.passes[order], sequence[order]
    return bool(((passes[1:] == passes[:-1]) & (owners[1:] != owners[:-1])).any())


def interleaved(trace: Trace) -> bool:
    """Whether the passes of different sequences alternate, so that sequences do not follow one another in time."""
    sequence = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[
        np.argsort(trace.passes, kind="stable")
    ]
    return int((np.diff(sequence) != 0).sum()) > trace.sequences - 1
