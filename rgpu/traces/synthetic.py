"""Calibrated synthetic traces: routing drawn to match measured expert popularity and reuse, where no trace is public.

A sequence has its own taste in every layer, drawn around the layer's popularity (Dirichlet: topics concentrate routing);
a token keeps each expert of the token before with some chance (neighbours share experts) and draws the rest without
replacement from the sequence's taste. Two numbers, `concentration` and `stickiness`, are fitted so that reuse at lag 1 and
at lag 8 meet stated targets. Nothing else of a real router is in it: no token identity, no link between layers.
Legend: N tokens, S sequences, L MoE layers, E experts, K top-k.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numba import njit

from rgpu.errors import InputError
from rgpu.traces import stats
from rgpu.traces.trace import DECODE, Trace, TraceHeader

LABEL = "calibrated synthetic"
NEAR, FAR = 1, 8  # lags whose reuse is fitted
WARM_UP = 12  # tokens drawn and dropped first: a first token has no neighbour
TASTES = 48  # sequences whose tastes average to the layer's popularity; a trace may hold fewer of them
_SAMPLE = (8, 12, 64)  # layers, sequences, tokens that a step of the fit draws
_BOUNDS = (-3.0, 2.0)  # log10 of the concentration
_STEPS = 12


@dataclass(frozen=True, slots=True)
class Targets:
    """Reuse a model is known for, as shares, and where each number comes from."""

    near: float
    far: float
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.far <= self.near < 1:
            raise InputError(
                f"synthetic trace: got reuse {self.near} at lag {NEAR} and {self.far} at lag {FAR}; expected shares with the "
                "second not above the first; state other targets"
            )


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted, and what the trace has: reuse by lag, and the correlation of popularity with the counts given."""

    concentration: float
    stickiness: float
    near: float
    far: float
    popularity_correlation: float


def calibrated(
    model: str, counts_LE: np.ndarray, top_k: int, targets: Targets, *, sequences: int, tokens: int, seed: int = 0,
    expert_bytes: int = 0, layer_ids: list[int] | None = None,
) -> tuple[Trace, Fit]:  # fmt: skip
    """A batch-1 decode trace of `sequences` times `tokens` tokens. `counts_LE`: uses of each expert, from real routing.

    Equal arguments give an equal trace. Raises InputError where the targets cannot be met: reuse below what popularity
    alone gives.
    """
    counts_LE = np.asarray(counts_LE, np.float64)
    layers, experts = counts_LE.shape
    if not 0 < top_k < experts:
        raise InputError(f"synthetic trace: got top-k {top_k} of {experts} experts; expected fewer than all")
    share_LE = (counts_LE + 0.5) / (counts_LE + 0.5).sum(1, keepdims=True)
    alone = float(stats.independence(share_LE, top_k).mean())
    if targets.far <= alone:
        raise InputError(
            f"synthetic trace: got a reuse of {targets.far:.3f} at lag {FAR}; expected more than {alone:.3f}, which "
            "independent draws from this popularity give; state other targets"
        )
    taste_LE = inclusion_weights(share_LE, top_k)
    concentration, stickiness = fit(taste_LE, top_k, targets, seed)
    rng = np.random.default_rng([seed, sequences, tokens])
    ids_SNLK = draw(taste_LE, top_k, concentration, stickiness, sequences, tokens, rng)
    narrow = np.uint8 if experts <= 255 else np.uint16
    n = sequences * tokens
    header = TraceHeader(
        f"{model} ({LABEL})", experts, top_k, layer_ids or list(range(layers)),
        expert_bytes=[expert_bytes] * layers if expert_bytes else [], on_policy=False,
        sequences=[{"kind": "synthetic", "domain": "synthetic", "document": f"synthetic/{s}"} for s in range(sequences)],
    )  # fmt: skip
    trace = Trace(
        header, ids_SNLK.reshape(n, layers, top_k).astype(narrow), np.arange(sequences + 1, dtype=np.int64) * tokens,
        np.tile(np.arange(tokens, dtype=np.int32), sequences), np.arange(n, dtype=np.int32),
        phase=np.full(n, DECODE, np.uint8),
    )  # fmt: skip
    near, far = stats.reuse(trace, (NEAR, FAR)).mean(1)
    found = np.corrcoef(stats.popularity(trace).ravel(), share_LE.ravel())[0, 1]
    result = Fit(concentration, stickiness, float(near), float(far), float(found))
    header.provenance = {"kind": LABEL, "seed": seed, "targets": asdict(targets), "fit": asdict(result)}
    return trace, result


def inclusion_weights(share_LE: np.ndarray, top_k: int, rounds: int = 40) -> np.ndarray:
    """float64 [L, E]: weights whose draws of K without replacement use each expert as often as `share_LE` says.

    Successive draws flatten popularity; the weights make up for it (fixed point on the approximation that an expert is
    drawn before the K-th with chance 1 - exp(-w t), t chosen so that K are)."""
    wanted_LE = np.minimum(top_k * share_LE, 0.98)
    weight_LE = share_LE.copy()
    for _ in range(rounds):
        time_L1 = _time_of(weight_LE, top_k)
        drawn_LE = -np.expm1(-weight_LE * time_L1)
        weight_LE *= wanted_LE / np.maximum(drawn_LE, 1e-12)
        weight_LE /= weight_LE.sum(1, keepdims=True)
    return weight_LE


def _time_of(weight_LE: np.ndarray, top_k: int) -> np.ndarray:
    """float64 [L, 1]: when K of exponential clocks with these rates have rung, in expectation; bisection."""
    low, high = np.zeros((len(weight_LE), 1)), np.full((len(weight_LE), 1), 1e6)
    for _ in range(60):
        middle = (low + high) / 2
        many = -np.expm1(-weight_LE * middle).sum(1, keepdims=True) > top_k
        low, high = np.where(many, low, middle), np.where(many, middle, high)
    return (low + high) / 2  # type: ignore[no-any-return]


def draw(
    taste_LE: np.ndarray, top_k: int, concentration: float, stickiness: float, sequences: int, tokens: int,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """int16 [S, N, L, K]: routing of every token, kept neighbours first."""
    layers, experts = taste_LE.shape
    alpha_LE = concentration * experts * taste_LE
    many = max(sequences, TASTES)
    own_SLE = _balanced(rng.standard_gamma(np.broadcast_to(alpha_LE, (many, layers, experts))), taste_LE)[:sequences]
    edges_SLE = np.cumsum(own_SLE, axis=2, dtype=np.float64)
    edges_SLE /= edges_SLE[:, :, -1:]
    out_SNLK = np.empty((sequences, tokens, layers, top_k), np.int16)
    _fill(edges_SLE, stickiness, WARM_UP, int(rng.integers(2**31)), out_SNLK)
    return out_SNLK


@njit(cache=True, nogil=True)
def _fill(edges_SLE, stickiness, warm_up, seed, out_SNLK):  # type: ignore[no-untyped-def]
    """Draws by cumulative taste; an expert drawn twice is drawn again, after a few times among what is left."""
    np.random.seed(seed)
    sequences, tokens, layers, top_k = out_SNLK.shape
    experts = edges_SLE.shape[2]
    chosen, stamp = np.zeros(experts, np.int64), 0
    last, now = np.empty(top_k, np.int64), np.empty(top_k, np.int64)
    for s in range(sequences):
        for layer in range(layers):
            edges = edges_SLE[s, layer]
            for t in range(-warm_up, tokens):
                stamp += 1
                n = 0
                if t > -warm_up:
                    for r in range(top_k):
                        if np.random.random() < stickiness:
                            now[n] = last[r]
                            chosen[last[r]] = stamp
                            n += 1
                tries = 0
                while n < top_k:
                    tries += 1
                    if tries <= 4 * top_k:
                        e = int(np.searchsorted(edges, np.random.random(), side="right"))
                    else:
                        left = 0.0
                        for i in range(experts):
                            if chosen[i] != stamp:
                                left += edges[i] - (edges[i - 1] if i else 0.0)
                        at = np.random.random() * left
                        e = -1
                        for i in range(experts):
                            if chosen[i] != stamp:
                                e = i
                                at -= edges[i] - (edges[i - 1] if i else 0.0)
                                if at < 0:
                                    break
                    if e < experts and chosen[e] != stamp:
                        chosen[e] = stamp
                        now[n] = e
                        n += 1
                for r in range(top_k):
                    last[r] = now[r]
                    if t >= 0:
                        out_SNLK[s, t, layer, r] = now[r]


def _balanced(own_SLE: np.ndarray, taste_LE: np.ndarray, rounds: int = 30) -> np.ndarray:
    """float32 [S, L, E]: the tastes scaled so that each sums to 1 and their mean is the layer's popularity."""
    own_SLE = np.maximum(own_SLE, 1e-12)
    for _ in range(rounds):
        own_SLE /= own_SLE.sum(2, keepdims=True)
        own_SLE *= taste_LE / own_SLE.mean(0)
    return np.maximum(own_SLE / own_SLE.sum(2, keepdims=True), 1e-9).astype(np.float32)  # type: ignore[no-any-return]


def fit(taste_LE: np.ndarray, top_k: int, targets: Targets, seed: int) -> tuple[float, float]:
    """(concentration, stickiness): bisection on the first for reuse at lag 8, the second following lag 1 at each step."""
    some = np.linspace(0, len(taste_LE) - 1, min(_SAMPLE[0], len(taste_LE))).astype(int)
    sample_LE = taste_LE[np.unique(some)]

    def reuse(log_concentration: float, stickiness: float) -> tuple[float, float]:
        rng = np.random.default_rng([seed, 1])  # the same draws at every step, so that the search sees no noise
        ids = draw(sample_LE, top_k, 10.0**log_concentration, stickiness, *_SAMPLE[1:], rng)
        return overlap(ids, NEAR), overlap(ids, FAR)

    low, high = _BOUNDS
    stickiness = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        for _ in range(2):
            near, _ = reuse(middle, stickiness)
            without = (near - stickiness) / max(1 - stickiness, 1e-6)
            stickiness = float(np.clip((targets.near - without) / max(1 - without, 1e-6), 0.0, 0.95))
        _, far = reuse(middle, stickiness)
        low, high = (middle, high) if far > targets.far else (low, middle)
    return 10.0 ** ((low + high) / 2), stickiness


def overlap(ids_SNLK: np.ndarray, lag: int) -> float:
    """Share of a token's experts that the token `lag` before used too, over sequences and layers."""
    now, before = ids_SNLK[:, lag:, :, :, None], ids_SNLK[:, :-lag, :, None, :]
    return float((now == before).any(-1).mean())


def described(fit_: Fit, targets: Targets) -> dict[str, Any]:
    """Targets beside what was reached, for a report."""
    return {
        f"reuse at lag {NEAR}": {"target": targets.near, "reached": fit_.near},
        f"reuse at lag {FAR}": {"target": targets.far, "reached": fit_.far},
        "popularity correlation": {"target": 1.0, "reached": fit_.popularity_correlation},
        "source": targets.source,
    }
