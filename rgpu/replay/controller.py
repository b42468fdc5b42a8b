"""The controller: one event at a time through the decision loop. Live inference and predictor-driven replay both use it.

It decides on logical state alone (what was submitted, never whether a copy has landed), so a live run and the replay of
its trace agree hit for hit and victim for victim. Legend: T tokens, K top-k, U union members, L MoE layers, E experts.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from rgpu.contracts import Forecast, Planner, Predictor
from rgpu.errors import InputError
from rgpu.policies.loop import (
    COUNTS,
    DEMAND,
    FILL,
    GROW,
    HITS,
    KEY_OF,
    LOGGED,
    PREFETCH,
    PREFETCH_BUSY,
    PREFETCH_HITS,
    SHRINK,
    SLOT_OF,
)
from rgpu.policies.policy import Policy, runner
from rgpu.replay.decision import Decision, split_waves
from rgpu.replay.engine import LogEntry
from rgpu.replay.events import TOUCH_ORDERS, union_of, union_of_one
from rgpu.replay.features import event_feature
from rgpu.replay.hot_start import hot_keys
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from rgpu.replay.resizing import Resized, Resizes, check_resizable, moves_of
from rgpu.types import MoEShape, RoutingEvent

MISSING = -1  # an assignment that a lossy run gave up (`rgpu.runtime.lossy`)
_NO_NEXT = np.zeros(0, np.int64)


class Controller:
    """Holds a policy's state for one model; `start` once, then `observe` and `ahead` for every event in order.

    `feature` says what recorded inputs the policy may use ("hidden", "router", "routing" or ""); by default what its
    traits ask for. `uses_LE` (a hot profile) fills the pools before the first event. `keep_log` collects every decision as
    `log`, comparable with `replay(..., log=True).log`. `waits`: the predictor reads the state before the next layer's
    attention, so that after a live event there are only the policy's `wishes` until `later` brings that state.
    """

    def __init__(
        self, policy: Policy, shape: MoEShape, pool: PoolConfig, *, predictor: Predictor | None = None,
        planner: Planner | None = None, calibration: Any = None, seed: int = 0, touch_order: str = "rank",
        feature: str | None = None, keep_log: bool = True, uses_LE: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if policy.traits.needs_future:
            raise InputError(
                f"policy {policy.name}: needs the future, so it cannot run live; expected one that does not"
            )
        if (predictor is None) != (planner is None):
            raise InputError("prefetch: got a predictor or a planner alone; expected both or neither")
        self.waits = "pre_attention" in getattr(predictor, "needs", ())
        if touch_order not in TOUCH_ORDERS:
            raise InputError(f"replay.touch_order: got {touch_order!r}; expected one of {', '.join(TOUCH_ORDERS)}")
        self.policy, self.shape, self.predictor, self.planner = policy, shape, predictor, planner
        self.layout = lay_out(pool, policy, shape)
        self._tell()
        self.feature = policy.traits.feature if feature is None else feature
        width = {"": 0, "hidden": shape.hidden}.get(self.feature, shape.experts)
        self._m, self._f, self._fill = initial_state(self.layout, policy, shape, self.feature, width, calibration, seed)
        self.warm = uses_LE is not None
        if uses_LE is not None:
            if any(len(keys) for keys in self._fill):
                raise InputError(
                    f"profile: got one for the policy {policy.name}, which fills the pools itself; expected a policy that "
                    "starts empty, such as lru; leave profile out"
                )
            self._fill = hot_keys(uses_LE, self.layout)
        self._run, self._reverse = runner(policy), touch_order == "reverse_rank"
        self.counts = np.zeros(COUNTS, np.int64)
        self.log: list[LogEntry] = []
        self.accesses = 0
        self._keep_log = keep_log
        experts = shape.experts
        self._mark, self._mass = np.zeros(experts, np.int64), np.zeros(experts, np.float32)
        self._where, self._stamp = np.zeros(experts, np.int64), 1
        self._plog = np.zeros((max(self.layout.main), 4), np.int64)
        self._last: RoutingEvent | None = None
        self._forecast: Forecast | None = None
        self._wishes: list[Decision] = []

    @property
    def pools(self) -> int:
        return self.layout.pools

    @property
    def slots(self) -> list[int]:
        """Slots of each pool that keep experts; `staging` more serve misses that are not kept."""
        return self.layout.main

    @property
    def staging(self) -> int:
        return self.layout.staging

    @property
    def hits(self) -> int:
        return int(self.counts[HITS])

    @property
    def prefetch_hits(self) -> int:
        return int(self.counts[PREFETCH_HITS])

    @property
    def filled_first(self) -> int:
        """Experts that the initial fill loads."""
        return sum(len(keys) for keys in self._fill)

    def pool_of(self, layer: int) -> int:
        return int(self.layout.pool_of[layer])

    def resident_LE(self) -> np.ndarray:
        """bool [L, E]: what is logically resident now."""
        where = self._m[:, SLOT_OF, : self.layout.keys]  # pools of consecutive layers, layer by layer
        return (where >= 0).reshape(self.shape.layers, self.shape.experts)

    def resident_E(self, layer: int) -> np.ndarray:
        """bool [E]: the same of one layer."""
        first = int(self.layout.base[layer])
        resident: np.ndarray = self._m[self.pool_of(layer), SLOT_OF, first : first + self.shape.experts] >= 0
        return resident

    def uses_LE(self) -> np.ndarray:
        """int64 [L, E]: events that used each expert so far, from the log (all zero without one)."""
        uses_LE = np.zeros((self.shape.layers, self.shape.experts), np.int64)
        for layer, _, kind, keys, _, _ in self.log:
            if kind == DEMAND:
                uses_LE[layer, np.asarray(keys, np.int64) - int(self.layout.base[layer])] += 1
        return uses_LE

    def occupants(self, pool: int) -> np.ndarray:
        """int64 [slots]: the key in each slot that keeps experts (-1: empty)."""
        return self._m[pool, KEY_OF, : self.layout.main[pool]].copy()

    def start(self) -> list[Decision]:
        """Initial fill, as loads to submit before the first event; empty for most policies."""
        filled = []
        for p, keys in enumerate(self._fill):
            if len(keys):
                filled.append(self._proactive(p, FILL, keys, layer=-1, number=-1))
        return filled

    def resize(self, pool: int, slots: int, number: int) -> Resized:
        """Gives `pool` that many slots that keep experts, before pass `number`: one by one, each a decision like any other.

        `InputError` for a policy or a size that cannot be (at most all the pool's experts)."""
        keys = int((self.layout.pool_of == pool).sum()) * self.shape.experts
        check_resizable(self.policy, self.layout, pool, slots, keys)
        before, main = self.occupants(pool), list(self.layout.main)
        kind = SHRINK if slots < main[pool] else GROW
        steps = [(-1, -1)] * abs(slots - main[pool])
        none, feature = np.zeros(1, np.int32), np.zeros((1, 0), np.float32)
        for i in range(len(steps)):
            codes, victims = self._step(pool, kind, none, np.zeros(1, np.float32), none[:0], feature)
            steps[i] = int(codes[0]), int(victims[0])
        main[pool] = slots
        self.layout = replace(self.layout, main=main)
        if resized := getattr(self.policy, "resized", None):
            resized(self._m[pool], self._f[pool])
        self._tell()
        if steps and self._keep_log:
            codes_, victims_ = zip(*steps, strict=True)
            self.log.append((-1, number, kind, (pool,), codes_, victims_))
        if len(self._plog) < slots:
            self._plog = np.zeros((slots, 4), np.int64)
        evicted = [victim for _, victim in steps if victim >= 0]
        return Resized(pool, slots, moves_of(before, self.occupants(pool)), evicted)

    def observe(self, event: RoutingEvent) -> Decision:
        """Decide one demand event; state advances. Proactive loads that follow from it come from `ahead`."""
        ids_TK = np.ascontiguousarray(event.experts_TK, np.int16)
        tokens, k = ids_TK.shape
        if event.fresh and self.predictor is not None:
            self.predictor.reset()
        weights_TK = np.zeros((0, k), np.float32) if event.weights_TK is None else event.weights_TK
        if tokens == 1 and len(different := set(ids_TK[0].tolist())) == k and MISSING not in different:
            n, (experts, mass, touch) = k, union_of_one(ids_TK[0], weights_TK, self._reverse)
        else:
            room = min(tokens * k, self.shape.experts)
            experts, mass = np.empty(room, np.int32), np.empty(room, np.float32)
            touch = np.empty(room if self._reverse else 0, np.int32)
            n, _ = union_of(ids_TK, weights_TK, self.shape.experts, MISSING, self._reverse, self._stamp, self._mark,
                            self._mass, self._where, experts, mass, touch)  # fmt: skip
            self._stamp += 3
            experts = experts[:n].copy()
        keys = experts + np.int32(self.layout.base[event.layer])
        self._forecast = None
        if self.policy.traits.forecast and self.predictor is not None:
            if self.waits:  # what was forecast of this event is past, and of its layer's next one nothing is said yet
                self._forget(event.layer)
            else:
                self._forecast = self._foresee(self.predictor, event)
        feature = np.zeros((1, 0), np.float32)
        if self.feature:
            feature = event_feature(self.feature, ids_TK, weights_TK, event.hidden_TD, event.logits_TE,
                                    self.shape.experts, MISSING)[None]  # fmt: skip
        pool = self.pool_of(event.layer)
        before = self._m[pool, SLOT_OF, keys].copy()
        self.counts[LOGGED] = 0
        codes, victims = self._step(pool, DEMAND, keys, mass[:n], touch[:n], feature)
        self.accesses += n
        self._note(event.layer, event.pass_id, DEMAND, keys, codes, victims)
        self._wishes = self._policy_loads(event, pool)
        self._last = event
        slots = np.where(codes >= 0, codes, before).astype(np.int32)
        layers = np.full(n, event.layer, np.int16)
        waves = list(split_waves(codes, slots, self.staging))
        return Decision(pool, DEMAND, layers, experts, codes, victims, slots, waves)

    def can_batch(self) -> bool:
        """Whether `observe_hits` may decide a whole pass: every expert is resident, and neither the policy nor a predictor
        looks at single events."""
        traits = self.policy.traits
        simple = self.predictor is None and not self.feature and traits.demand and not traits.forecast
        return simple and not self._reverse and bool(self.resident_LE().all())

    def observe_hits(self, ids_LTK: np.ndarray, weights_LTK: np.ndarray, pass_id: int) -> None:
        """Decides one event of every layer in order, as `observe` does, where `can_batch`: all are hits."""
        layers, tokens, k = ids_LTK.shape
        order_LP = np.sort(ids_LTK.reshape(layers, -1), axis=1)
        if tokens > 1 or (order_LP[:, 1:] == order_LP[:, :-1]).any() or (order_LP[:, 0] < 0).any():
            for layer in range(layers):
                self.observe(RoutingEvent(layer, pass_id, ids_LTK[layer], weights_LTK[layer]))
            return
        base_L, pool_L = self.layout.base.astype(np.int32), self.layout.pool_of.astype(np.int32)
        keys = (ids_LTK[:, 0].astype(np.int32) + base_L[:, None]).ravel()
        codes, victims = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
        self.counts[LOGGED] = 0
        self._run(self._m, self._f, pool_L, np.full(layers, DEMAND, np.int8), np.arange(layers + 1, dtype=np.int64) * k, keys,
                  np.ascontiguousarray(weights_LTK.ravel(), np.float32), _NO_NEXT, np.zeros(0, np.int32),
                  np.zeros((layers, 0), np.float32), codes, victims, self.counts, self._plog)  # fmt: skip
        self.accesses += len(keys)
        for layer in range(layers) if self._keep_log else ():
            here = slice(layer * k, (layer + 1) * k)
            self._note(layer, pass_id, DEMAND, keys[here], codes[here], victims[here])
        self._last, self._wishes = None, []

    def ahead(self) -> list[Decision]:
        """Proactive loads after the last event, in the order to submit them: the policy's wishes, then the planner's.

        The policy's (kind PREFETCH in the event's own pool) may evict members of the event: they, and whatever follows
        them in that pool, must wait until it is computed. Without them nothing evicts a member of its last wave.
        """
        out = self.wishes()
        if self.predictor is None or self.planner is None or self._last is None:
            return out
        event = self._last
        forecast = self._foresee(self.predictor, event) if self._forecast is None else self._forecast
        if hasattr(self.planner, "observe"):
            self.planner.observe(event)
        wanted: dict[int, list[int]] = {}
        for key in self.planner.plan(forecast, self.resident_LE()):
            wanted.setdefault(self.pool_of(key.layer), []).append(int(self.layout.base[key.layer]) + key.expert)
        for pool, keys in wanted.items():
            kind = PREFETCH_BUSY if pool == self.pool_of(event.layer) else PREFETCH
            unique = np.asarray(list(dict.fromkeys(keys)), np.int32)
            out.append(self._proactive(pool, kind, unique, event.layer, event.pass_id))
        return out

    def _tell(self) -> None:
        if told := getattr(self.planner, "told", None):  # a planner may ask how much room there is
            told(self.layout.main, self.layout.pool_of)

    def wishes(self) -> list[Decision]:
        """The policy's share of `ahead`."""
        out, self._wishes = self._wishes, []
        return out

    def later(self, pre_attention_TD: np.ndarray) -> list[Decision]:
        """The rest of `ahead`, once the last event is computed and the state before the next layer's attention is there."""
        assert self._last is not None
        self._last = replace(self._last, pre_attention_TD=pre_attention_TD)
        return self.ahead()

    def _foresee(self, predictor: Predictor, event: RoutingEvent) -> Forecast:
        """One forecast for eviction and prefetch: made once the routing is known, before anything is evicted for it; by a
        predictor that `waits`, after that, so that it evicts for what is loaded ahead and for the events that follow."""
        predictor.observe(event)
        forecast = predictor.predict()
        if self.policy.traits.forecast:
            for layer, probs_E in zip(forecast.layers.tolist(), forecast.probs_HE, strict=True):
                self._chances_E(layer)[:] = probs_E
        return forecast

    def _forget(self, layer: int) -> None:
        """Drop what was forecast of an event that is past."""
        self._chances_E(layer)[:] = 0

    def _chances_E(self, layer: int) -> np.ndarray:
        """What a policy that evicts by forecasts reads of one layer."""
        first = int(self.layout.base[layer])
        chances_E: np.ndarray = self._f[self.pool_of(layer), 0, first : first + self.shape.experts]
        return chances_E

    def _step(
        self, pool: int, kind: int, keys: np.ndarray, mass: np.ndarray, touch: np.ndarray, feature: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        codes, victims = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
        self._run(self._m, self._f, np.full(1, pool, np.int32), np.full(1, kind, np.int8),
                  np.array([0, len(keys)], np.int64), keys, mass, _NO_NEXT, touch, feature, codes, victims, self.counts,
                  self._plog)  # fmt: skip
        return codes, victims

    def _proactive(self, pool: int, kind: int, keys: np.ndarray, layer: int, number: int) -> Decision:
        none = np.zeros(0, np.int32)
        mass = np.zeros(len(keys), np.float32)
        codes, victims = self._step(pool, kind, keys, mass, none, np.zeros((1, 0), np.float32))
        self._note(layer, number, kind, keys, codes, victims)
        return self._loads(pool, kind, keys, codes, victims)

    def _policy_loads(self, event: RoutingEvent, pool: int) -> list[Decision]:
        rows = self._plog[: self.counts[LOGGED]]
        if not len(rows):
            return []
        keys, slots, victims = (rows[:, c].astype(np.int32) for c in (1, 2, 3))
        self._note(event.layer, event.pass_id, PREFETCH, keys, slots, victims)
        return [self._loads(pool, PREFETCH, keys, slots, victims)]

    def _loads(self, pool: int, kind: int, keys: np.ndarray, codes: np.ndarray, victims: np.ndarray) -> Decision:
        first = int(np.argmax(self.layout.pool_of == pool))
        layers, experts = (first + keys // self.shape.experts).astype(np.int16), keys % self.shape.experts
        slots = np.where(codes >= 0, codes, -1).astype(np.int32)
        return Decision(pool, kind, layers, experts.astype(np.int32), codes, victims, slots, [])

    def _note(
        self, layer: int, number: int, kind: int, keys: np.ndarray, codes: np.ndarray, victims: np.ndarray
    ) -> None:
        if self._keep_log and kind != FILL:
            row = (tuple(keys.tolist()), tuple(codes.tolist()), tuple(victims.tolist()))
            self.log.append((layer, number, kind, *row))


def replay_events(controller: Controller, events: Iterator[RoutingEvent], resizes: Resizes | None = None) -> Controller:
    """Drive a controller through recorded events: the replay that has a predictor in it. `resizes`: how pools changed their
    size in the run (`Resizes.of` its trace). Returns the controller."""
    controller.start()
    for event in events:
        if resizes:
            resizes.make(controller, event.pass_id)
        controller.observe(event)
        controller.ahead()
    if resizes:
        resizes.make(controller)
    return controller
