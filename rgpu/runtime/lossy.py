"""Lossy modes: which assignments of an event are not served by the expert that the router chose, and by what instead.

A mode sees the router's choice and what is logically resident before the event. What it leaves is the event: the controller
decides it, the executor computes it and the trace holds it. An expert that is loaded for one token serves every token that
wants it, so a miss is given up as a whole or not at all; where a threshold decides, a token keeps its first expert.
Sources: the gate weight as measure, and a low-precision copy for middling ones, HOBBIT (arXiv 2411.01433, section 3.2);
skipping relative to the largest weight, Lu et al. 2024 (arXiv 2402.14800, section 3.3). Router rows as signatures are ours.

Legend: T tokens, K top-k, E experts, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from rgpu.errors import InputError
from rgpu.quant.formats import by_name

GIVEN_UP = -1
LARGEST, SUM = "largest", "sum"


@dataclass(frozen=True, slots=True)
class Rerouted:
    """`ids_TK`: what the event is computed with, `GIVEN_UP` for nothing; `changed_TK` bool: where that is not what the
    router chose."""

    ids_TK: np.ndarray
    changed_TK: np.ndarray


class Lossy(Protocol):
    """A mode. `did`: what it did to an assignment, in a word. `low`: the format of low-precision copies of every expert, or
    None. `renormalise`: weights that are left are scaled to the sum that all had."""

    @property
    def name(self) -> str: ...

    @property
    def did(self) -> str: ...

    @property
    def renormalise(self) -> bool: ...

    @property
    def low(self) -> Any: ...

    def reroute(
        self, layer: int, ids_TK: np.ndarray, weights_TK: np.ndarray, resident_E: np.ndarray
    ) -> Rerouted | None:
        """None: everything as the router chose it."""
        ...

    def prepare(self, routers: Sequence[np.ndarray | None], top_k: int) -> None:
        """Before the first event: the weight [E, D] of each layer's router (None: unknown); `InputError` where the mode can
        do nothing on such a model."""
        ...

    def settings(self) -> dict[str, Any]:
        """Name and parameters, as plain data."""
        ...


@dataclass(frozen=True, slots=True)
class Skip:
    """Assignments to missing experts are left out where their gate weight is below `threshold` of the token's `relative`
    ("largest" or "sum" of its gate weights). `hits`: also those to experts that are there, each on its own. The weights that
    are left stay as they are, or (`renormalise`) are scaled to the sum that all had."""

    threshold: float = 0.3
    relative: str = LARGEST
    hits: bool = False
    renormalise: bool = False

    name, did, low = "skip", "skipped", None

    def __post_init__(self) -> None:
        _check(self.name, self.threshold, self.relative)

    def prepare(self, routers: Sequence[np.ndarray | None], top_k: int) -> None:
        """See `Lossy`."""
        _check_several(self.name, top_k)

    def reroute(
        self, layer: int, ids_TK: np.ndarray, weights_TK: np.ndarray, resident_E: np.ndarray
    ) -> Rerouted | None:
        """See `Lossy`."""
        if self.hits:
            return _without(ids_TK, below(weights_TK, self.threshold, self.relative))
        return _without(ids_TK, _light_misses(self, ids_TK, weights_TK, resident_E))

    def settings(self) -> dict[str, Any]:
        """See `Lossy`."""
        return {"mode": self.name} | asdict(self)


@dataclass(frozen=True, slots=True)
class LowPrecision:
    """Every expert is also held in RAM in `format` ("int4" or "int8", scales for `group` columns; None: the format's own).
    Missing experts whose gate weight is below `threshold` of the token's `relative` are computed from that copy; the others
    are fetched in the model's own precision."""

    threshold: float = 0.5
    relative: str = LARGEST
    format: str = "int4"
    group: int | None = 32

    name, did, renormalise = "low_precision", "low_precision", False

    def __post_init__(self) -> None:
        _check(self.name, self.threshold, self.relative)
        if self.format not in ("int4", "int8"):
            raise InputError(f"lossy.format: got {self.format!r}; expected int4 or int8; set lossy.format=int4")

    @property
    def low(self) -> Any:
        """See `Lossy`."""
        return by_name(self.format, **({} if self.group is None else {"group": self.group}))

    def prepare(self, routers: Sequence[np.ndarray | None], top_k: int) -> None:
        """See `Lossy`."""
        _check_several(self.name, top_k)

    def reroute(
        self, layer: int, ids_TK: np.ndarray, weights_TK: np.ndarray, resident_E: np.ndarray
    ) -> Rerouted | None:
        """See `Lossy`."""
        return _without(ids_TK, _light_misses(self, ids_TK, weights_TK, resident_E))

    def settings(self) -> dict[str, Any]:
        """See `Lossy`."""
        return {"mode": self.name} | asdict(self)


class Substitute:
    """A missing expert is replaced, for each token that wants it, by the resident one whose router row has the largest
    cosine with its own, if that is at least `similarity` and the token does not use it already; its gate weight stays.
    `threshold`: only where the gate weight is below this of the token's `relative`; None: whatever it is."""

    name, did, low, renormalise = "substitute", "substituted", None, False

    def __init__(self, similarity: float = 0.0, threshold: float | None = 0.3, relative: str = LARGEST) -> None:
        if similarity != similarity or similarity < -1:
            raise InputError(
                f"lossy.similarity: got {similarity}; expected a cosine, from -1 (any) to above 1 (none); set "
                "lossy.similarity=0"
            )
        _check(self.name, 1.0 if threshold is None else threshold, relative)
        self.similarity, self.threshold, self.relative = similarity, threshold, relative
        self._cosine_LEE: list[np.ndarray] = []

    def prepare(self, routers: Sequence[np.ndarray | None], top_k: int) -> None:
        """See `Lossy`."""
        if self.threshold is not None:
            _check_several(self.name, top_k)
        self._cosine_LEE = [cosines(router_ED) for router_ED in routers if router_ED is not None]
        if len(self._cosine_LEE) < len(routers):
            raise InputError(
                "lossy=substitute: got a model whose routers have no row an expert; expected one with a weight [experts, "
                "hidden] a layer; set lossy=skip"
            )

    def reroute(
        self, layer: int, ids_TK: np.ndarray, weights_TK: np.ndarray, resident_E: np.ndarray
    ) -> Rerouted | None:
        """See `Lossy`."""
        wanted_TK = ~resident_E[ids_TK]
        if self.threshold is not None:
            wanted_TK &= below(weights_TK, self.threshold, self.relative)
        wanted_TK = whole(ids_TK, wanted_TK, len(resident_E))
        if not wanted_TK.any():
            return None
        free_TE = np.tile(resident_E, (len(ids_TK), 1))
        np.put_along_axis(free_TE, ids_TK, False, 1)
        nearest_TK = ids_TK.copy()
        for rank in range(ids_TK.shape[1]):  # a token's heavier experts choose first
            rows = wanted_TK[:, rank].nonzero()[0]
            if not len(rows):
                continue
            cosine_NE = np.where(free_TE[rows], self._cosine_LEE[layer][ids_TK[rows, rank]], -np.inf)
            best_N = cosine_NE.argmax(1)
            found_N = cosine_NE[np.arange(len(rows)), best_N] >= self.similarity
            wanted_TK[rows[~found_N], rank] = False
            nearest_TK[rows[found_N], rank] = best_N[found_N]
            free_TE[rows[found_N], best_N[found_N]] = False
        changed_TK = whole(ids_TK, wanted_TK, len(resident_E))
        return Rerouted(np.where(changed_TK, nearest_TK, ids_TK), changed_TK) if changed_TK.any() else None

    def settings(self) -> dict[str, Any]:
        """See `Lossy`."""
        return {
            "mode": self.name,
            "similarity": self.similarity,
            "threshold": self.threshold,
            "relative": self.relative,
        }


def below(weights_TK: np.ndarray, threshold: float, relative: str) -> np.ndarray:
    """bool [T, K]: gate weights below `threshold` of the token's largest or of their sum; never the token's first largest."""
    whole_T1 = weights_TK.max(1, keepdims=True) if relative == LARGEST else weights_TK.sum(1, keepdims=True)
    light_TK: np.ndarray = weights_TK < threshold * whole_T1
    np.put_along_axis(light_TK, weights_TK.argmax(1)[:, None], False, 1)
    return light_TK


def _light_misses(
    mode: "Skip | LowPrecision", ids_TK: np.ndarray, weights_TK: np.ndarray, resident_E: np.ndarray
) -> np.ndarray:
    """bool [T, K]: missing experts that no token gives a weight from the threshold on."""
    missing_TK: np.ndarray = ~resident_E[ids_TK]
    if not missing_TK.any():
        return missing_TK
    return whole(ids_TK, missing_TK & below(weights_TK, mode.threshold, mode.relative), len(resident_E))


def _without(ids_TK: np.ndarray, changed_TK: np.ndarray) -> Rerouted | None:
    return Rerouted(np.where(changed_TK, GIVEN_UP, ids_TK), changed_TK) if changed_TK.any() else None


def whole(ids_TK: np.ndarray, changed_TK: np.ndarray, experts: int) -> np.ndarray:
    """`changed_TK` without the experts that some assignment keeps: they are loaded anyway, so every token has them."""
    kept_E = np.zeros(experts, bool)
    kept_E[ids_TK[~changed_TK]] = True
    return changed_TK & ~kept_E[ids_TK]


def cosines(router_ED: np.ndarray) -> np.ndarray:
    """float32 [E, E]: cosine of every two rows."""
    unit_ED = router_ED / np.maximum(np.linalg.norm(router_ED, axis=1, keepdims=True), 1e-12)
    return (unit_ED @ unit_ED.T).astype(np.float32)


def _check(name: str, threshold: float, relative: str) -> None:
    if not 0 <= threshold <= 1:
        raise InputError(
            f"lossy.threshold: got {threshold}; expected a share of a gate weight, from 0 (nothing) to 1; set "
            "lossy.threshold=0.3"
        )
    if relative not in (LARGEST, SUM):
        raise InputError(f"lossy.relative: got {relative!r}; expected {LARGEST} or {SUM}; set lossy.relative={LARGEST}")


def _check_several(name: str, top_k: int) -> None:
    if top_k < 2:
        raise InputError(
            f"lossy={name}: got a model of one expert a token, which keeps its first; expected two or more; leave lossy out"
        )
