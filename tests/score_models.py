"""Score policies written the slow way: dictionaries and sorting, event-atomic with pinned waves. No code of rgpu's loop."""

import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Event = tuple[int, list[int], np.ndarray]  # layer within the pool, members in rank order, the router's scores


class Model:
    """What every policy model may look at: when, where and how often. `score` is what the victim is least of."""

    def __init__(self, experts: int, layers: int = 1, **facts: Any) -> None:
        self.experts, self.layers, self.facts = experts, layers, facts
        self.clock = self.event = self.layer = 0
        self.uses: dict[int, int] = defaultdict(int)
        self.last: dict[int, int] = defaultdict(int)
        self.slot: dict[int, int] = {}
        self.prepare()

    def prepare(self) -> None: ...
    def begin(self, members: list[int], scores: np.ndarray) -> None: ...
    def placed(self, key: int) -> None: ...
    def evicted(self, key: int) -> None: ...
    def touched(self, key: int, hit: bool) -> None: ...
    def score(self, key: int) -> Any: ...

    @property
    def passes(self) -> int:
        return (self.event - 1) // self.layers + 1

    def log2(self, x: float) -> float:
        return math.floor(math.log2(x)) + x / 2.0 ** math.floor(math.log2(x)) - 1.0 if x > 0 else 0.0


def run_model(model: Model, events: Sequence[Event], slots: int) -> tuple[int, list[int]]:
    """(hits, victims in order) of one pool."""
    hits, victims = 0, []
    free = list(range(slots))[::-1]
    for layer, members, scores in events:
        model.event += 1
        model.layer = layer
        present = [k for k in members if k in model.slot]
        hits += len(present)
        pinned = set(present)
        model.begin(members, scores)
        for key in (k for k in members if k not in present):
            gone = -1
            if not free:
                if pinned >= set(model.slot):
                    pinned = set()
                gone = min((k for k in model.slot if k not in pinned), key=lambda k: (model.score(k), model.slot[k]))
                model.evicted(gone)
                free.append(model.slot.pop(gone))
            victims.append(gone)
            model.slot[key] = free.pop()
            model.clock += 1
            pinned.add(key)
            model.placed(key)
            model.last[key] = model.clock
        for key in members:
            model.clock += 1
            if key in model.slot:
                model.touched(key, key in present)
                model.last[key] = model.clock
    return hits, victims


class LfuModel(Model):
    def placed(self, key: int) -> None:
        self.uses[key] = 0

    def touched(self, key: int, hit: bool) -> None:
        self.uses[key] += 1

    def score(self, key: int) -> Any:
        return self.uses[key], self.last[key]


class LfuPerfectModel(Model):
    def begin(self, members: list[int], scores: np.ndarray) -> None:
        for key in members:
            self.uses[key] += 1

    def score(self, key: int) -> Any:
        return self.uses[key], self.last[key]


class FadingModel(Model):
    """Counts that fade; `unit` events of time."""

    def prepare(self) -> None:
        self.when: dict[int, list[int]] = defaultdict(list)

    def time(self) -> int:
        return self.passes

    def begin(self, members: list[int], scores: np.ndarray) -> None:
        for key in members:
            self.when[key].append(self.time())

    def count(self, key: int) -> float:
        return math.fsum(2.0 ** ((t - self.time()) / self.facts["half_life"]) for t in self.when[key])


class LfuDecayedModel(FadingModel):
    def time(self) -> int:
        return self.event

    def score(self, key: int) -> Any:
        return float(f"{self.count(key):.10e}")  # rgpu holds 40 bits


class LfruModel(Model):
    def placed(self, key: int) -> None:
        self.uses[key] = 1 if self.facts["forget"] else self.uses[key] + 1

    def touched(self, key: int, hit: bool) -> None:
        self.uses[key] += hit

    def score(self, key: int) -> Any:
        return Fraction(self.uses[key], self.clock - self.last[key] + 1), self.last[key]


class GdsfModel(Model):
    def prepare(self) -> None:
        self.inflation = 0.0
        self.value: dict[int, float] = {}

    def rate(self, key: int) -> None:
        self.value[key] = self.inflation + self.uses[key] / self.facts["size"](key)

    def placed(self, key: int) -> None:
        self.uses[key] = 1
        self.rate(key)

    def touched(self, key: int, hit: bool) -> None:
        self.uses[key] += hit
        self.rate(key)

    def evicted(self, key: int) -> None:
        self.inflation = max(self.inflation, self.value[key])

    def score(self, key: int) -> Any:
        return self.value[key], self.last[key]


class LeastStaleModel(Model):
    def prepare(self) -> None:
        self.born: dict[int, int] = {}
        self.fresh: set[int] = set()
        self.before = self.layers

    def begin(self, members: list[int], scores: np.ndarray) -> None:
        if self.layer <= self.before:
            self.fresh = set()
        self.before = self.layer

    def placed(self, key: int) -> None:
        self.born[key] = self.clock
        self.fresh.add(key)

    def touched(self, key: int, hit: bool) -> None:
        self.fresh.add(key)

    def score(self, key: int) -> Any:
        return key in self.fresh, self.last[key] if self.facts["order"] == "used" else self.born[key]


class LayerAwareModel(Model):
    def score(self, key: int) -> Any:
        ahead = (key // self.experts - self.layer - 1) % self.layers  # 0: the very next layer
        return -ahead, self.last[key]


class GateScoreModel(Model):
    def prepare(self) -> None:
        self.given: dict[int, list[tuple[int, float]]] = defaultdict(list)

    def begin(self, members: list[int], scores: np.ndarray) -> None:
        for expert, value in enumerate(scores):
            self.given[self.layer * self.experts + expert].append((self.passes, float(value)))

    def score(self, key: int) -> Any:
        faded = math.fsum(v * 2.0 ** ((t - self.passes) / self.facts["half_life"]) for t, v in self.given[key])
        return faded, self.last[key]


class ClassLruModel(FadingModel):
    def prepare(self) -> None:
        super().prepare()
        self.level: dict[int, int] = {}

    def placed(self, key: int) -> None:
        self.level[key] = max(0, min(7, math.floor(self.log2(self.count(key)))))

    def touched(self, key: int, hit: bool) -> None:
        self.placed(key)

    def score(self, key: int) -> Any:
        return -Fraction(self.clock + 1 - self.last[key], 2 ** self.level[key]), self.level[key]


class AgedModel(FadingModel):
    """Age in passes and fading count at the last use."""

    def prepare(self) -> None:
        super().prepare()
        self.then: dict[int, float] = {}
        self.used: dict[int, int] = {}

    def placed(self, key: int) -> None:
        self.then[key] = self.log2(self.count(key))
        self.used[key] = self.event

    def touched(self, key: int, hit: bool) -> None:
        self.placed(key)

    def age(self, key: int) -> int:
        return max(1, math.ceil((self.event - self.used[key]) / self.layers))


def count_bucket(count: float, even: float) -> int:
    return max(0, min(3, math.floor(count - even) + 2))


class ForecastModel(AgedModel):
    def score(self, key: int) -> Any:
        bucket = min(6, math.floor(math.log2(self.age(key))))
        count = count_bucket(self.then[key], self.facts["even"])
        return self.facts["chance"][count][bucket], -bucket, count, self.last[key]


class LearnedModel(AgedModel):
    def score(self, key: int) -> Any:
        by_age, by_count, _, low, width = self.facts["model"]
        said = self.facts["base"][key // self.experts] + by_count * self.then[key]
        level = max(0, min(14, int((said - low) / width)))
        return -((level + 0.5) * width + by_age * math.floor(math.log2(self.age(key)))), self.used[key], self.last[key]


class ActivationModel(FadingModel):
    def prepare(self) -> None:
        super().prepare()
        self.match = -1

    def begin(self, members: list[int], scores: np.ndarray) -> None:
        first = (self.event - 1) % self.layers == 0
        if first and self.passes > 1 and (self.passes - 1) % self.facts["rematch"] == 0:
            near = [
                sum(m[k] * self.count(k) for k in sorted(self.when)) for m in self.facts["maps"]
            ]  # of length 1: the cosine's order
            self.match = max(range(len(near)), key=lambda i: (round(near[i], 9), -i))
        super().begin(members, scores)

    def score(self, key: int) -> Any:
        expected = self.facts["mean"] if self.match < 0 else self.facts["maps"][self.match]
        return expected[key] * (1 - key // self.experts / self.layers), self.last[key]


class FarthestBySizeModel(Model):
    def begin(self, members: list[int], scores: np.ndarray) -> None:
        self.now = members

    def score(self, key: int) -> Any:
        coming = self.facts["uses"][key]
        following = [t for t in coming if t >= self.event]  # events are numbered from 0, self.event from 1
        away = following[0] - (self.event - 1) if following else 1 << 60
        return -float(away) * self.facts["size"](key)
