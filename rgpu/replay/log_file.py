"""Decision logs on disk: one safetensors file with a JSON header (docs/decision_log.md). Legend as in `rgpu.replay.log`.

Beside rgpu's own logs this holds those of any engine: `decision_jsonl` reads the plain form and `save_log` keeps it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rgpu.errors import InputError
from rgpu.policies.loop import BYPASS, DEMAND, HIT, PREFETCH_HIT
from rgpu.replay.events import Events
from rgpu.replay.log import DecisionLog
from rgpu.replay.placement import place_layers
from rgpu.replay.pool import Layout
from rgpu.results.provenance import write_atomic

METADATA_KEY = "rgpu_decision_log"
SCHEMA_VERSION = 1
HANDLERS = ("none", "fetch", "cpu", "split", "zero_copy", "substitute", "skip")  # codes of `handler`; hits: none
ARRAYS: dict[str, tuple[type, int]] = {  # name: (dtype, dimensions); V events, A accesses, P proactive loads, F fills
    "layer": (np.int16, 1), "pass_id": (np.int32, 1), "offs": (np.int64, 1), "keys": (np.int32, 1),
    "codes": (np.int32, 1), "victims": (np.int32, 1), "proactive": (np.int64, 2), "fills": (np.int64, 2),
    "stretches": (np.int64, 1), "decode": (np.bool_, 1), "weights": (np.float32, 1), "touch": (np.int32, 1),
    "handler": (np.uint8, 1), "event_s": (np.float64, 2), "load_s": (np.float64, 2),
}  # fmt: skip
NEEDED = ("layer", "pass_id", "offs", "keys", "codes", "victims", "stretches")
TIMES = ("event_s", "load_s")


@dataclass(slots=True)
class LogFile:
    """A decision log with what surrounds it.

    `experts` a layer; `handler` uint8 [A] indices of `HANDLERS` (None: all fetched); `event_s` float64 [V, 2] begin and end
    of each event, `load_s` float64 [A, 2] begin and end of each demand copy (NaN where there was none): wall seconds from
    the run's start, None in a replay. `claims`: totals the engine reported (hits, loads, bytes_loaded), checked by the
    audit. `about`: model, engine, trace, anything else.
    """

    log: DecisionLog
    experts: int
    handler: np.ndarray | None = None
    event_s: np.ndarray | None = None
    load_s: np.ndarray | None = None
    claims: dict[str, int] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return len(self.log.layout.pool_of)


def save_log(path: str | Path, file: LogFile) -> Path:
    """Write whole or not at all. Raises InputError for a log that does not hold together or a path that cannot be used."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"cannot write log {path}: got suffix '{path.suffix}'; expected .safetensors; rename it")
    check(file, f"cannot write log {path}")
    log, events, layout = file.log, file.log.events, file.log.layout
    header = {
        "schema_version": SCHEMA_VERSION, "policy": log.policy, "scope": layout.scope, "layers": file.layers,
        "experts": file.experts, "slots": [int(s) for s in layout.main], "staging": layout.staging,
        "byte_cap": [int(b) for b in layout.byte_cap],
        "expert_bytes": [int(layout.size_of[layout.pool_of[i], layout.base[i]]) for i in range(file.layers)],
        "claims": file.claims, "about": file.about,
    }  # fmt: skip
    given: dict[str, np.ndarray | None] = {
        "layer": events.layer, "pass_id": events.pass_id, "offs": events.offs, "keys": events.keys, "codes": log.codes,
        "victims": log.victims, "proactive": log.proactive, "fills": log.fills, "stretches": log.stretches,
        "decode": events.decode, "weights": events.weights, "touch": events.touch, "handler": file.handler,
        "event_s": file.event_s, "load_s": file.load_s,
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    for name, (kind, _) in ARRAYS.items():
        if (array := given[name]) is not None and array.size:
            arrays[name] = np.ascontiguousarray(array, kind)
    write_atomic(path, save(arrays, {METADATA_KEY: json.dumps(header)}))
    return path


def load_log(path: str | Path) -> LogFile:
    """Read and validate a log of rgpu (.safetensors) or of another engine (.jsonl). Raises InputError, one line."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read log {path}: got no such file; expected a decision log; see docs/decision_log.md")
    if path.suffix == ".jsonl":
        from rgpu.replay.decision_jsonl import read_jsonl

        return check(read_jsonl(path), f"cannot use log {path}")
    try:
        with safe_open(path, framework="np") as source:
            present = set(source.keys()) & set(ARRAYS)
            metadata, arrays = source.metadata() or {}, {name: source.get_tensor(name) for name in present}
    except (SafetensorError, TypeError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"cannot read log {path}: got '{reason}'; expected .safetensors or .jsonl; write it again"
        ) from None
    if METADATA_KEY not in metadata:
        raise InputError(f"cannot use log {path}: got no '{METADATA_KEY}' header; expected a decision log")
    return check(_assemble(_header(metadata[METADATA_KEY], path), arrays, path), f"cannot use log {path}")


def _header(text: str, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
        version = header["schema_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"cannot use log {path}: got an unreadable header ({error}); expected JSON") from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"cannot use log {path}: got schema_version {version}; expected {SCHEMA_VERSION}; use a matching rgpu"
        )
    return dict(header)


def layout_of(header: dict[str, Any], where: str) -> tuple[Layout, int]:
    """(layout, experts a layer) from a header. Raises InputError naming what is missing or wrong."""
    try:
        layers, experts, scope = int(header["layers"]), int(header["experts"]), str(header.get("scope", "layer"))
        placed = place_layers(scope, layers, experts)
        slots, sizes = header["slots"], header.get("expert_bytes") or [0] * layers
        slots = [slots] * placed.pools if isinstance(slots, int) else [int(s) for s in slots]
        sizes = [sizes] * layers if isinstance(sizes, int) else [int(s) for s in sizes]
        caps = np.asarray(header.get("byte_cap") or [0] * placed.pools, np.int64)
        staging = int(header.get("staging", 0))
    except KeyError as error:
        raise InputError(f"{where}: got a header without {error}; expected layers, experts and slots") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: got a header value that does not fit ({error}); see docs/decision_log.md") from None
    if layers < 1 or experts < 1 or len(slots) != placed.pools or len(sizes) != layers or len(caps) != placed.pools:
        raise InputError(
            f"{where}: got {len(slots)} slot counts and {len(sizes)} expert sizes; expected {placed.pools} and {layers}"
        )
    size_of = np.repeat(np.asarray(sizes, np.int64).reshape(placed.pools, placed.span), experts, axis=1)
    return Layout(scope, placed.pools, placed.keys, placed.pool_of, placed.base, slots, staging, caps, size_of), experts


def _assemble(header: dict[str, Any], arrays: dict[str, np.ndarray], path: Path) -> LogFile:
    if lacking := [n for n in NEEDED if n not in arrays]:
        raise InputError(f"cannot use log {path}: got no array '{lacking[0]}'; expected {', '.join(NEEDED)}")
    for name, array in arrays.items():
        kind, dimensions = ARRAYS[name]
        if array.dtype != kind or array.ndim != dimensions:
            raise InputError(
                f"cannot use log {path}: got '{name}' {array.dtype} with {array.ndim} dimensions; expected "
                f"{np.dtype(kind)} with {dimensions}"
            )
    layout, experts = layout_of(header, f"cannot use log {path}")
    layer = arrays["layer"]
    if len(layer) and (layer.min() < 0 or layer.max() >= len(layout.pool_of)):
        raise InputError(f"cannot use log {path}: got layer {layer.max()}; expected 0 to {len(layout.pool_of) - 1}")
    events = Events(
        layout.pool_of[layer], np.full(len(layer), DEMAND, np.int8), layer, arrays["pass_id"],
        arrays.get("decode", np.zeros(len(layer), bool)), arrays["offs"], arrays["keys"],
        arrays.get("weights", np.zeros(len(arrays["keys"]), np.float32)), arrays.get("touch", np.zeros(0, np.int32)),
        len(arrays["keys"]),
    )  # fmt: skip
    none = np.zeros((0, 5), np.int64)
    log = DecisionLog(
        str(header.get("policy", "")), events, layout, arrays["codes"], arrays["victims"],
        arrays.get("proactive", none), arrays.get("fills", none), arrays["stretches"],
    )  # fmt: skip
    handler, event_s, load_s = (arrays.get(name) for name in ("handler", *TIMES))
    claims, about = dict(header.get("claims") or {}), dict(header.get("about") or {})
    return LogFile(log, experts, handler, event_s, load_s, claims, about)


def check(file: LogFile, where: str) -> LogFile:
    """The log, if its arrays fit one another (what they claim is for the audit to judge). Raises InputError."""
    log, events = file.log, file.log.events
    v, a, keys = len(events.layer), len(events.keys), log.layout.keys
    lengths = {
        "pass_id": (events.pass_id, v), "decode": (events.decode, v), "offs": (events.offs, v + 1),
        "codes": (log.codes, a), "victims": (log.victims, a), "weights": (events.weights, a), "handler": (file.handler, a),
        "event_s": (file.event_s, v), "load_s": (file.load_s, a), "touch": (events.touch if len(events.touch) else None, a),
    }  # fmt: skip
    for name, (array, length) in lengths.items():
        if array is not None and len(array) != length:
            raise InputError(f"{where}: got {len(array)} values of '{name}'; expected {length}")
    for name, table in (("proactive", log.proactive), ("fills", log.fills)):
        if table.ndim != 2 or table.shape[1] != 5:
            raise InputError(f"{where}: got '{name}' of shape {table.shape}; expected rows of 5 numbers")
    offs, stretches = events.offs, log.stretches
    if offs[0] != 0 or offs[-1] != a or (np.diff(offs) < 0).any():
        raise InputError(f"{where}: got 'offs' that do not rise from 0 to {a}; expected where each event begins")
    if len(stretches) < 2 or stretches[0] != 0 or stretches[-1] != v or (np.diff(stretches) <= 0).any():
        raise InputError(
            f"{where}: got 'stretches' that do not rise from 0 to {v}; expected event numbers of the resets"
        )
    outside = (events.keys < 0) | (events.keys >= keys)
    if outside.any():
        raise InputError(f"{where}: got expert key {events.keys[outside][0]}; expected 0 to {keys - 1}")
    if ((log.victims < -1) | (log.victims >= keys)).any():
        raise InputError(f"{where}: got victim key {log.victims.max()}; expected -1 to {keys - 1}")
    known = (log.codes >= 0) | np.isin(log.codes, (HIT, BYPASS, PREFETCH_HIT))
    if not known.all():
        raise InputError(
            f"{where}: got code {log.codes[~known][0]}; expected a slot, or -1 hit, -2 staged, -5 prefetched"
        )
    owner = np.repeat(np.arange(v, dtype=np.int64), np.diff(offs))
    if len(np.unique(owner * keys + events.keys)) != a:
        raise InputError(f"{where}: got an expert twice in one event; expected each event's union without duplicates")
    if file.handler is not None and (file.handler >= len(HANDLERS)).any():
        raise InputError(f"{where}: got handler {file.handler.max()}; expected 0 to {len(HANDLERS) - 1}")
    return file
