"""The plain form of a decision log: one JSON object a line, which any engine can write (docs/decision_log.md)."""

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.loop import BYPASS, DEMAND, HIT
from rgpu.replay.events import Events
from rgpu.replay.log import DecisionLog
from rgpu.replay.log_file import HANDLERS, SCHEMA_VERSION, LogFile, layout_of
from rgpu.replay.pool import Layout

EVENT_KEYS = {
    *("pass", "layer", "experts", "hits", "loads", "staged", "prefetches", "fills"),
    *("reset", "handler", "times", "decode"),
}


class _Line:
    """One event's line: fields with the checks that name the line."""

    def __init__(self, where: str, given: dict[str, Any], layout: Layout, experts: int) -> None:
        self.where, self.given, self.layout, self.experts = where, given, layout, experts
        if unknown := sorted(set(given) - EVENT_KEYS):
            self.fail(f"got the field {unknown[0]!r}; expected some of {', '.join(sorted(EVENT_KEYS))}")
        for name in ("layer", "experts"):
            if name not in given:
                self.fail(f"got no {name!r}; expected pass, layer, experts, and hits, loads or staged")
        self.layer = self.whole(given["layer"], len(layout.pool_of), "layer")
        self.pool = int(layout.pool_of[self.layer])

    def fail(self, text: str) -> NoReturn:
        raise InputError(f"{self.where}: {text}")

    def whole(self, value: Any, below: int, what: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
            self.fail(f"got {what} {value!r}; expected a whole number from 0 to {below - 1}")
        return value

    def key(self, value: Any) -> int:
        """An expert of this layer, or [layer, expert] of another layer of the same pool."""
        layer = self.layer
        if isinstance(value, list):
            if len(value) != 2:
                self.fail(f"got {value!r}; expected an expert or [layer, expert]")
            layer, value = self.whole(value[0], len(self.layout.pool_of), "layer"), value[1]
            if self.layout.pool_of[layer] != self.pool:
                self.fail(f"got layer {layer}, which is in another pool than layer {self.layer}; see the scope")
        return int(self.layout.base[layer]) + self.whole(value, self.experts, "expert")

    def load(self, value: Any) -> tuple[int, int, int]:
        """(key, slot, victim key or -1)."""
        if (
            not isinstance(value, list)
            or len(value) != 3
            or isinstance(value[1], bool)
            or not isinstance(value[1], int)
        ):
            self.fail(f"got load {value!r}; expected [expert, slot, victim or null]")
        if value[1] < 0:
            self.fail(f"got slot {value[1]}; expected a whole number from 0")
        return self.key(value[0]), value[1], -1 if value[2] is None else self.key(value[2])

    def many(self, name: str) -> list[Any]:
        value = self.given.get(name) or []
        if not isinstance(value, list):
            self.fail(f"got {name} {value!r}; expected a list")
        return value


def read_jsonl(path: Path) -> LogFile:
    """The log that the lines say. Raises InputError naming the line."""
    header: dict[str, Any] | None = None
    claims: dict[str, int] = {}
    layers: list[int] = []
    passes: list[int] = []
    decode: list[bool] = []
    keys: list[int] = []
    codes: list[int] = []
    victims: list[int] = []
    handlers: list[int] = []
    sizes: list[int] = []
    resets: list[int] = []
    times: list[tuple[float, float]] = []
    proactive: list[tuple[int, ...]] = []
    fills: list[tuple[int, ...]] = []
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, 1):
            where = f"cannot use log {path} line {number}"
            if not text.strip():
                continue
            try:
                given = json.loads(text)
            except ValueError as error:
                raise InputError(f"{where}: got no JSON ({error}); expected one object a line") from None
            if not isinstance(given, dict):
                raise InputError(f"{where}: got {type(given).__name__}; expected an object")
            if header is None:
                header, (layout, experts) = _first(given, where)
                continue
            if "claims" in given:
                claims = {str(k): int(v) for k, v in given["claims"].items()}
                continue
            line, e = _Line(where, given, layout, experts), len(layers)
            if given.get("reset") or e == 0:
                resets.append(e)
            fills += [(e, line.pool, *line.load(row)) for row in line.many("fills")]
            union = [line.key(k) for k in line.many("experts")]
            said = _decisions(line)
            if sorted(said) != sorted(union):
                odd = sorted(set(said) ^ set(union)) or union
                line.fail(f"got expert key {odd[0]} not named once in experts and once in hits, loads or staged")
            default = HANDLERS.index("fetch")
            if (name := given.get("handler")) is not None and name not in HANDLERS:
                line.fail(f"got handler {name!r}; expected one of {', '.join(HANDLERS)}")
            for key in union:
                code, victim = said[key]
                keys.append(key)
                codes.append(code)
                victims.append(victim)
                handlers.append(0 if code == HIT else HANDLERS.index(name) if name else default)
            proactive += [(e, line.pool, *line.load(row)) for row in line.many("prefetches")]
            layers.append(line.layer)
            number_of = given.get("pass", e // len(layout.pool_of))
            passes.append(line.whole(number_of, 1 << 31, "pass"))
            decode.append(bool(given.get("decode", False)))
            sizes.append(len(union))
            span = given.get("times") or [np.nan, np.nan]
            if not isinstance(span, list) or len(span) != 2:
                line.fail(f"got times {span!r}; expected [begin, end] in seconds")
            times.append((float(span[0]), float(span[1])))
    if header is None or not layers:
        raise InputError(f"cannot use log {path}: got no events; expected a header line, then one line an event")
    layer = np.asarray(layers, np.int16)
    events = Events(
        layout.pool_of[layer], np.full(len(layer), DEMAND, np.int8), layer, np.asarray(passes, np.int32),
        np.asarray(decode, bool), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), np.asarray(keys, np.int32),
        np.zeros(len(keys), np.float32), np.zeros(0, np.int32), len(keys),
    )  # fmt: skip
    log = DecisionLog(
        str(header.get("policy", "")), events, layout, np.asarray(codes, np.int32), np.asarray(victims, np.int32),
        np.asarray(proactive, np.int64).reshape(-1, 5), np.asarray(fills, np.int64).reshape(-1, 5),
        np.asarray([*resets, len(layer)], np.int64),
    )  # fmt: skip
    event_s = np.asarray(times) if np.isfinite(np.asarray(times)).any() else None
    about = {k: v for k, v in header.items() if k in ("engine", "model", "trace")}
    return LogFile(log, experts, np.asarray(handlers, np.uint8), event_s, None, claims, about)


def _first(given: dict[str, Any], where: str) -> tuple[dict[str, Any], tuple[Layout, int]]:
    if given.get("rgpu_decision_log") != SCHEMA_VERSION:
        raise InputError(
            f'{where}: got no header; expected {{"rgpu_decision_log": {SCHEMA_VERSION}, "layers": .., "experts": .., '
            '"slots": ..}; see docs/decision_log.md'
        )
    return given, layout_of(given, where)


def _decisions(line: _Line) -> dict[int, tuple[int, int]]:
    """(code, victim) of each member named in hits, loads or staged; one named twice is an error."""
    said: dict[int, tuple[int, int]] = {}
    named = [(line.key(k), HIT, -1) for k in line.many("hits")]
    named += [line.load(row) for row in line.many("loads")]
    named += [(line.key(k), BYPASS, -1) for k in line.many("staged")]
    for key, code, victim in named:
        if key in said:
            line.fail(f"got expert key {key} twice among hits, loads and staged; expected each member once")
        said[key] = (code, victim)
    return said
