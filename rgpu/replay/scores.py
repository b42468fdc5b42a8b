"""What is counted of forecasts, and the tidy rows it becomes: every ratio of semantics with its sums, always by width.

The field calls at least four things "accuracy" (recall, exact match, top-1, and per-expert accuracy, which mostly counts
experts that nobody would name); each has its own name here. Calibration: Naeini, Cooper and Hauskrecht 2015 (expected
calibration error, bins of equal width). Legend: P passes, E experts, K top-k, W widths, S sequences, C cells (parts of a
trace told apart, such as distances from a topic switch), U clusters = S * C, B bins.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 10  # of equal width in [0, 1], the last one closed
EPS = float(np.finfo(np.float32).eps)  # chances are float32: none is nearer to 0 or 1 than this says
COUNTED = ("hits", "exact", "mass")  # [W, U]
SUMMED = ("count", "top1", "log_loss", "tied", "reach")  # [U]
Row = dict[str, Any]


@dataclass(slots=True)
class Target:
    """What was routed where one forecast row speaks of: experts [P, K] in rank order, gate shares [P, K] or None, stored
    router logits [P, E] or None, and the cluster [P] and cell [P] each pass belongs to."""

    ids_PK: np.ndarray
    share_PK: np.ndarray | None
    logits_PE: np.ndarray | None
    cluster_P: np.ndarray
    cell_P: np.ndarray


class Tally:
    """Sums of one forecast row over all passes."""

    def __init__(self, widths: Sequence[int], experts: int, top_k: int, sequences: int, cells: int = 1) -> None:
        self.widths, self.experts, self.top_k, self.cells = list(widths), experts, top_k, cells
        clusters = sequences * cells
        self.wide = {name: np.zeros((len(widths), clusters)) for name in COUNTED}
        self.summed = {name: np.zeros(clusters) for name in SUMMED}
        self.bins_3BU = np.zeros((3, BINS, clusters))  # (token, expert) pairs, their chances, how many were routed
        self.parts_3CE = np.zeros((3, cells, experts), np.int64)  # of macro F1: hit, named, routed

    def add(self, probs_PE: np.ndarray, target: Target) -> None:
        """Count one chunk: float32 chances [P, E] against what was routed."""
        passes, clusters = len(probs_PE), len(self.summed["count"])
        true_PE = np.zeros((passes, self.experts), bool)
        np.put_along_axis(true_PE, target.ids_PK, True, axis=1)
        named_PW = np.argsort(-probs_PE, axis=1, kind="stable")[:, : self.widths[-1]]
        found_PW = np.take_along_axis(true_PE, named_PW, axis=1)
        hits_PW = np.cumsum(found_PW, axis=1)
        mass_PW = None
        if target.share_PK is not None:
            share_PE = np.zeros((passes, self.experts))
            np.put_along_axis(share_PE, target.ids_PK, target.share_PK, axis=1)
            mass_PW = np.cumsum(np.take_along_axis(share_PE, named_PW, axis=1), axis=1)

        def sums(values_P: np.ndarray) -> np.ndarray:
            return np.bincount(target.cluster_P, values_P, clusters)

        for i, width in enumerate(self.widths):
            hits_P = hits_PW[:, width - 1]
            self.wide["hits"][i] += sums(hits_P)
            self.wide["exact"][i] += sums(hits_P == self.top_k)
            if mass_PW is not None:
                self.wide["mass"][i] += sums(mass_PW[:, width - 1])
        self.summed["count"] += np.bincount(target.cluster_P, minlength=clusters)
        self.summed["top1"] += sums(named_PW[:, 0] == target.ids_PK[:, 0])
        self.summed["log_loss"] += sums(log_loss(probs_PE, true_PE))
        if target.logits_PE is not None:
            tied_P, reach_P = ties(target.logits_PE, true_PE)
            self.summed["tied"] += sums(tied_P)
            self.summed["reach"] += sums(reach_P)
        bin_PE = np.minimum((probs_PE * np.float32(BINS)).astype(np.int64), BINS - 1)
        at = (bin_PE * clusters + target.cluster_P[:, None]).ravel()
        for i, weights in enumerate((None, probs_PE.ravel(), true_PE.ravel())):
            self.bins_3BU[i] += np.bincount(at, weights, BINS * clusters).reshape(BINS, clusters)
        named_PK, found_PK = named_PW[:, : self.top_k], found_PW[:, : self.top_k]
        cell_PK = np.broadcast_to(target.cell_P[:, None], named_PK.shape)
        pairs = ((cell_PK[found_PK], named_PK[found_PK]), (cell_PK, named_PK), (cell_PK, target.ids_PK))
        for i, (cell, expert) in enumerate(pairs):
            np.add.at(self.parts_3CE[i], (cell.ravel(), expert.ravel()), 1)

    def rows(self, layer: int, horizon: int, weighted: bool, with_logits: bool, expert_bytes: int = 0) -> Iterator[Row]:
        """Tidy rows, cell by cell (see `prediction.evaluate`)."""
        for cell in range(self.cells):
            yield from self._cell(cell, layer, horizon, weighted, with_logits, expert_bytes)

    def _cell(
        self, cell: int, layer: int, horizon: int, weighted: bool, with_logits: bool, expert_bytes: int
    ) -> Iterator[Row]:
        count_S = self.summed["count"][cell :: self.cells]
        common = {"layer": layer, "case": "layer" if horizon else "token", "horizon": horizon, "cell": cell,
                  "count": int(count_S.sum())}  # fmt: skip
        experts, top_k = self.experts, self.top_k

        def row(metric: str, width: int | None, numerators: np.ndarray, denominators: np.ndarray) -> Row:
            sums = {"numerators": numerators, "denominators": denominators, "bins": None}
            return common | {"metric": metric, "width": width, "value": ratio(numerators, denominators)} | sums

        for i, width in enumerate(self.widths):
            hits_S, exact_S, mass_S = (self.wide[name][i, cell :: self.cells] for name in COUNTED)
            yield row("recall", width, hits_S, top_k * count_S)
            yield row("precision", width, hits_S, width * count_S)
            yield row("f1_micro", width, 2 * hits_S, (width + top_k) * count_S)
            yield row("accuracy", width, (experts - width - top_k) * count_S + 2 * hits_S, experts * count_S)
            yield row("exact", width, exact_S, count_S)
            if weighted:
                yield row("mass", width, mass_S, count_S)
            if expert_bytes:
                yield row("miss_bytes", width, expert_bytes * (top_k * count_S - hits_S), count_S)
        summed = {name: sums[cell :: self.cells] for name, sums in self.summed.items()}
        yield row("top1", 1, summed["top1"], count_S)
        yield row("log_loss", None, summed["log_loss"], experts * count_S)
        if with_logits:
            yield row("tied", None, summed["tied"], top_k * count_S)
            yield row("ceiling", None, summed["reach"], top_k * count_S)
        hit_E, named_E, true_E = self.parts_3CE[:, cell]
        both_E = named_E + true_E
        f1_E = np.divide(2 * hit_E, both_E, out=np.zeros(experts), where=both_E > 0)
        value = float(f1_E.mean()) if common["count"] else float("nan")
        alone: Row = {"numerators": None, "denominators": None, "bins": None}
        yield common | {"metric": "f1", "width": top_k, "value": value} | alone
        bins_3BS = self.bins_3BU[:, :, cell :: self.cells].copy()
        value = float(calibration_error(bins_3BS.sum(2))) if common["count"] else float("nan")
        yield common | {"metric": "ece", "width": None, "value": value} | alone | {"bins": bins_3BS}


def over_layers(rows: Sequence[Row]) -> list[Row]:
    """The same rows pooled over layers (`layer` None): sums added; `f1` averaged; `miss_bytes` of all layers together, so
    bytes a token in the layers that have such a forecast."""
    return pooled(rows, ("case", "horizon", "cell", "metric", "width"), {"layer": None})


def pooled(rows: Sequence[Row], keep: Sequence[str], fixed: Row) -> list[Row]:
    """One row for each value of the columns `keep`, the others summed over; `fixed` columns are set."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in keep), []).append(row)
    out = []
    for members in groups.values():
        row = members[0] | fixed | {"count": sum(m["count"] for m in members)}
        if row["bins"] is not None:
            row["bins"] = np.sum([m["bins"] for m in members], axis=0)
            row["value"] = float(calibration_error(row["bins"].sum(2)))
        elif row["numerators"] is None:
            row["value"] = float(np.mean([m["value"] for m in members]))
        else:
            row["numerators"] = np.sum([m["numerators"] for m in members], axis=0)
            row["denominators"] = np.sum([m["denominators"] for m in members], axis=0)
            if row["metric"] == "miss_bytes":  # a token passes every layer once
                row["denominators"] = row["denominators"] / len(members)
            row["value"] = ratio(row["numerators"], row["denominators"])
        out.append(row)
    return out


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Sum over sum; NaN where nothing was asked."""
    total = float(denominators.sum())
    return float(numerators.sum()) / total if total else float("nan")


def log_loss(probs_PE: np.ndarray, true_PE: np.ndarray) -> np.ndarray:
    """float64 [P]: nats, summed over experts; chances are kept `EPS` away from 0 and 1."""
    probs_PE = np.clip(probs_PE.astype(np.float64), EPS, 1 - EPS)
    return -np.log(np.where(true_PE, probs_PE, 1 - probs_PE)).sum(1)


def calibration_error(bins_3BX: np.ndarray) -> np.ndarray:
    """Expected calibration error [X] from counts, chances and routed [3, B, X]: |routed - chances| over the counts."""
    asked_X = bins_3BX[0].sum(0)
    gap_X = np.abs(bins_3BX[2] - bins_3BX[1]).sum(0)
    return np.divide(gap_X, asked_X, out=np.full(np.shape(asked_X), np.nan), where=asked_X > 0)


def calibration_statistic(bins_3BS: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """(statistic [X, B] -> [B], values [X, S]) for `rgpu.results.statistics.interval_of`."""
    three, bins, sequences = bins_3BS.shape
    return lambda sums: calibration_error(sums.reshape(three, bins, -1)), bins_3BS.reshape(-1, sequences)


def ties(logits_PE: np.ndarray, true_PE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(assignments whose stored logit an unrouted expert shares, assignments that ranking by stored logits finds): [P].

    Of m routed among n experts that share a value, a ranking that breaks ties at random finds m * m / n. Logits are stored
    in float16, so two experts whose float32 logits differ by less than half a step share a value. Where the router adds a
    bias before it chooses, logits are not what it ranks by, and only equal values count here too.
    """
    order_PE = np.argsort(logits_PE, axis=1, kind="stable")
    value_PE = np.take_along_axis(logits_PE, order_PE, axis=1)
    routed_PE = np.take_along_axis(true_PE, order_PE, axis=1)
    fresh_PE = np.ones(value_PE.shape, bool)
    fresh_PE[:, 1:] = value_PE[:, 1:] != value_PE[:, :-1]
    group = np.cumsum(fresh_PE.ravel()) - 1  # every pass begins a group of its own
    size_G = np.bincount(group)
    chosen_G = np.bincount(group, routed_PE.ravel())
    pass_G = np.repeat(np.arange(len(logits_PE)), fresh_PE.sum(1))
    mixed_G = chosen_G < size_G
    tied_P = np.bincount(pass_G, np.where(mixed_G, chosen_G, 0), len(logits_PE))
    reach_P = np.bincount(pass_G, chosen_G * chosen_G / size_G, len(logits_PE))
    return tied_P, reach_P
