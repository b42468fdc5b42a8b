"""Oracle: knows what comes, and says it as well or as badly as it is told to. For what-if curves; it cannot run live.

Source: the clairvoyant bounds of the cache literature (Belady 1966), applied to prediction: what would a recall of 80 % be
worth here, were there a predictor that has it? Perfect prediction of one layer is priced so in arXiv 2608.12103.
Legend: N rows, P passes, L MoE layers, H rows of a forecast, E experts, K top-k.
"""

from pathlib import Path
from zlib import crc32

import numpy as np

from rgpu.errors import InputError, TraceError
from rgpu.predictors.base import BasePredictor, speaking_rows
from rgpu.predictors.draws import mixed, uniform
from rgpu.predictors.routed import known_or_last, sequence_of, successors
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent

SURE = np.float32(1 - 2**-12)  # what an overconfident oracle says of the experts it names


class Oracle(BasePredictor):
    """Names `width` experts a row (null: the top-k): each routed one with probability `recall`, others filled in at random.

    `calibrated`: chances are honest (the share of the named that are routed, and of the unnamed); else the named are all but
    certain and the others impossible. Draws depend on `seed`, the sequence's ids, the token's place in it, the layer spoken
    from and the row, so on no order of calls. Before a replay `know(trace)` says what the events to come belong to. The
    last token of a sequence has no next one: its row is K / E throughout.
    """

    name = "oracle"
    clairvoyant = True

    def __init__(
        self, horizon: int = 4, recall: float = 1.0, width: int | None = None, calibrated: bool = True, seed: int = 0
    ) -> None:
        super().__init__(horizon)
        self.recall, self.width, self.calibrated, self.seed = recall, width, calibrated, seed

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        experts, top_k = self.schema_.experts, self.schema_.top_k
        width = self._named
        if not top_k <= width <= experts:
            raise InputError(
                f"predictor oracle: got width {width}; expected {top_k} (the top-k) to {experts}; set predictor.width"
            )
        if not width / experts <= self.recall <= 1:
            raise InputError(
                f"predictor oracle: got recall {self.recall}; expected {width / experts:.3g} (naming {width} of {experts} at "
                "random) to 1; set predictor.recall"
            )
        return {"experts": np.full(1, experts, np.int64)}  # nothing is learned; files hold at least one array

    @property
    def _named(self) -> int:
        return self.schema_.top_k if self.width is None else self.width

    # -- forecasting

    def know(self, trace: Trace) -> "Oracle":
        """The trace whose events are observed next, by their `pass_id`."""
        self.check(trace)
        self._trace, self._future = trace, _Future(trace)
        return self

    def reset(self) -> None:
        super().reset()
        self._rows_N = np.zeros(0, np.int64)

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        if not hasattr(self, "_future"):
            raise InputError(
                "predictor oracle: got an event of a run whose future it does not know; expected the replay of a trace; "
                "choose a predictor that can run live, such as previous_token"
            )
        self._rows_N = self._future.speaking(event.pass_id)

    def _score(self, layer: int) -> np.ndarray:
        return self._say(self._future, self._rows_N, layer)

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        if getattr(self, "_trace", None) is not trace:
            self.know(trace)
        return self._say(self._future, rows_P, layer)

    def _say(self, future: "_Future", rows_N: np.ndarray, layer: int) -> np.ndarray:
        """float32 [N, H, E]."""
        own, (layers, ahead) = self.schema_, self.targets(layer)
        probs_NHE = np.empty((len(rows_N), len(layers), own.experts), np.float32)
        for h, target in enumerate(layers):
            ids_NK = future.ids(rows_N, int(target), bool(ahead[h]))
            draw_NE = uniform(future.key_N[rows_N], (self.seed, layer, int(target), int(ahead[h])), own.experts)
            probs_NHE[:, h] = self._name(ids_NK, draw_NE)
        return probs_NHE

    def _name(self, ids_NK: np.ndarray, draw_NE: np.ndarray) -> np.ndarray:
        """float32 [N, E] for rows that route `ids_NK` (E: not known) and one draw an expert, uniform in [0, 1)."""
        own, width = self.schema_, self._named
        true_NE = np.zeros((len(ids_NK), own.experts + 1), bool)
        np.put_along_axis(true_NE, ids_NK, True, axis=1)
        true_NE = true_NE[:, : own.experts]
        kept_NE = true_NE & (draw_NE < self.recall)
        order_NE = np.where(
            kept_NE, 2.0, np.where(true_NE, -1.0, draw_NE)
        )  # kept, then others at random, never the lost
        named_NW = np.argsort(-order_NE, axis=1, kind="stable")[:, :width]
        inside, outside = self._chances()
        probs_NE = np.full(draw_NE.shape, outside, np.float32)
        np.put_along_axis(probs_NE, named_NW, inside, axis=1)
        probs_NE[(ids_NK >= own.experts).any(1)] = np.float32(own.top_k / own.experts)
        return probs_NE

    def _chances(self) -> tuple[np.float32, np.float32]:
        """Of a named expert and of another one."""
        own, width = self.schema_, self._named
        if not self.calibrated:
            return SURE, np.float32(0)
        left = own.experts - width
        lost = 0.0 if left == 0 else own.top_k * (1 - self.recall) / left
        return np.float32(self.recall * own.top_k / width), np.float32(lost)


class _Future:
    """What each row of a trace will see: its own later layers, and the token after it."""

    def __init__(self, trace: Trace) -> None:
        self._trace, self._experts = trace, trace.header.num_experts
        self._next_N = np.full(trace.tokens, -1, np.int64)
        before, after = successors(trace)
        self._next_N[before] = after
        rows = np.arange(trace.tokens)
        sequence_N = sequence_of(trace, rows)
        spans = zip(trace.seq_offsets[:-1], trace.seq_offsets[1:], strict=True)
        print_S = np.array([crc32(np.ascontiguousarray(trace.expert_ids[a:b]).tobytes()) for a, b in spans], np.uint64)
        self.key_N = mixed(print_S[sequence_N], (rows - trace.seq_offsets[sequence_N]).astype(np.uint64))
        self._passes: dict[int, np.ndarray] | None = None

    def ids(self, rows_N: np.ndarray, layer: int, ahead: bool) -> np.ndarray:
        """int64 [N, K]: what is routed at `layer`, by the next token if `ahead`; E where that is not known."""
        at_N = self._next_N[rows_N] if ahead else rows_N
        ids_NK = known_or_last(self._trace.expert_ids[at_N, layer], self._experts)
        ids_NK[at_N < 0] = self._experts
        return ids_NK

    def speaking(self, number: int) -> np.ndarray:
        """int64: the rows of a pass that a forecast is made from."""
        if self._passes is None:
            order = np.argsort(self._trace.passes, kind="stable")
            numbers, starts = np.unique(self._trace.passes[order], return_index=True)
            self._passes = dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))
        if number not in self._passes:
            raise TraceError(
                f"predictor oracle: got an event of pass {number}; expected one of the trace that it knows"
            )
        rows = self._passes[number]
        phase_T = None if self._trace.phase is None else self._trace.phase[rows]
        return rows[speaking_rows(phase_T, len(rows))]
