"""The engine on a GPU: is it right, and how fast does it decode models of true size under memory caps?

    python benchmarks/gpu_engine.py [--out DIR] [--budget 240] [--parts checks,qwen,oss,big,stock,train] [--routing DIR]

The gpt-oss models have sliding windows in every other layer; --full-attention: full attention in all, as the rows of
2026-11-27-h200 have. Needs torch, triton, transformers and numba. Weights are random at true size. Routing is forced from the
ids in the folder --routing, PART.npy (uint8 [tokens, layers, k]) with PART.json, where they are, else it is the random router's
own. Exit code 0: all right; 1: a check fails; 2: no GPU.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
PARTS = ("checks", "qwen", "oss", "big", "stock", "train")


def checks(out: Path, end: float) -> bool:
    from rgpu.experiments.benching.engine_checks import COLUMNS
    from rgpu.experiments.benching.engine_checks import checks as all_checks
    from rgpu.experiments.benching.table import append_rows

    held = True
    with tempfile.TemporaryDirectory() as folder:
        for name, holds, found in all_checks(Path(folder)):
            print(f"{'ok  ' if holds else 'FAIL'} {name}: {found}", flush=True)
            append_rows(out / "engine_checks.csv", [dict(zip(COLUMNS, (name, holds, found), strict=True))], COLUMNS)
            held = held and holds
            if time.time() > end:
                break
    return held


def speed(which: str, out: Path, end: float, routing: Path | None, full: bool = False) -> bool:
    import numpy as np
    import torch

    from rgpu.experiments.benching import engine_run, made_model
    from rgpu.experiments.benching.table import append_rows
    from rgpu.policies.lru import Lru
    from rgpu.policies.on_demand import OnDemand
    from rgpu.quant.int4 import Int4
    from rgpu.quant.mxfp4 import Mxfp4

    ids, words = None, ""
    path = (
        None
        if routing is None
        else routing / ("qwen.npy" if which == "qwen" else "oss.npy" if which == "oss" else "big.npy")
    )
    if path is not None and path.exists():
        ids = np.load(path, allow_pickle=False)
        words = json.loads((path.with_suffix(".json")).read_text())["routing"]
    began, every = time.time(), ", full attention" if full else ""
    if which == "qwen":
        made = engine_run.make("Qwen3-30B-A3B", made_model.qwen3_30b(), "int4-g128", Int4(), ids, words)
        caps = (24, 6.3, 8, 12, 16)
    elif which == "oss":
        made = engine_run.make(f"gpt-oss-20b{every}", made_model.gpt_oss(24, 32, full), "mxfp4", Mxfp4(), ids, words)
        caps = (24, 6.3, 8, 12)
    else:
        made = engine_run.make(f"gpt-oss-120b{every}", made_model.gpt_oss(36, 128, full), "mxfp4", Mxfp4(), ids, words)
        caps = (24,)
    print(f"{made.name}: {made.source.nbytes / 1e9:.1f} GB of experts made in {time.time() - began:.1f} s", flush=True)
    plans: list[tuple[float, Any, str, bool, bool, int]] = [
        (caps[0], Lru(), "fetch", True, True, 1),
        (caps[0], Lru(), "fetch", True, False, 1),
        (caps[0], Lru(), "fetch", False, False, 1),
    ]
    for cap in caps[1:]:
        plans += [(cap, Lru(), "fetch", True, fused, 1) for fused in (True, False)]
        plans += [(cap, Lru(), "zero_copy", True, True, 1)]
    plans += [
        (caps[-1], OnDemand(), "fetch", True, True, 1),
        (caps[-1], Lru(), "fetch", False, False, 1),
        (caps[-1], Lru(), "fetch", True, True, 4),
    ]
    first: dict[tuple[int, bool], torch.Tensor] = {}
    held = True
    for cap, policy, handler, graphs, fused, batch in plans:
        if time.time() > end:
            print(f"{made.name}: out of time before cap {cap} {policy.name} {handler}", flush=True)
            break
        try:
            row, tokens = engine_run.run(
                made,
                policy,
                int(cap * GIB),
                handler,
                graphs=graphs,
                fused=fused,
                batch=batch,
                wanted=first.get((batch, fused)),
                warm=cap >= 24 and which != "big",
                tokens=48,
            )
            first.setdefault((batch, fused), tokens)
        except Exception as error:  # one configuration must not hide the others
            traceback.print_exc(limit=-3)
            row = dict.fromkeys(engine_run.COLUMNS, "") | {
                "model": made.name, "cap_gib": cap, "policy": policy.name, "handler": handler, "graphs": graphs,
                "fused": fused, "batch": batch,
                "error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            }  # fmt: skip
            held = False
        append_rows(out / "engine.csv", [row], engine_run.COLUMNS)
        shown = ("cap_gib", "policy", "handler", "graphs", "fused", "batch", "slots", "hit_rate", "tpot_ms_p50",
                 "link_ms_per_token", "stall_ms_per_token", "ttft_ms", "reserved_gib", "used_gib", "same_tokens",
                 "error")  # fmt: skip
        print(made.name, {name: row[name] for name in shown}, flush=True)
        held = held and row["same_tokens"] is not False
    return held


def stock(out: Path) -> bool:
    from rgpu.experiments.benching.engine_stock import COLUMNS, compare
    from rgpu.experiments.benching.table import append_rows

    rows = compare()
    append_rows(out / "engine_stock.csv", rows, COLUMNS)
    for row in rows:
        print(row, flush=True)
    return all(row["same_tokens"] is not False for row in rows)


def train(out: Path, end: float) -> bool:
    from rgpu.experiments.benching.table import append_rows
    from rgpu.experiments.benching.training import COLUMNS, compare

    held = True
    for row in compare(ROOT):
        append_rows(out / "training.csv", [row], COLUMNS)
        print(row, flush=True)
        held = held and row["near"]
        if time.time() > end:
            break
    return held


def note(out: Path, **facts: Any) -> None:
    path = out / "engine.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **facts}, indent=2, default=str) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--budget", type=float, default=240, help="seconds for all parts")
    parser.add_argument("--parts", type=lambda text: tuple(text.split(",")), default=PARTS)
    parser.add_argument("--routing", type=Path, default=None)
    parser.add_argument("--full-attention", action="store_true", help="gpt-oss without sliding windows")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write(f"gpu_engine: no GPU: torch {torch.__version__} finds none; run this where there is one\n")
        raise SystemExit(2)
    from rgpu.results.provenance import manifest

    out = arguments.out or ROOT / "results" / "gpu" / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    out.mkdir(parents=True, exist_ok=True)
    note(out, device=torch.cuda.get_device_name(), **manifest({"arguments": sys.argv[1:]}))
    began, held = time.time(), {}
    for part in arguments.parts:
        start = time.time()
        try:
            end = began + arguments.budget
            if part == "stock":
                held[part] = stock(out)
            elif part == "train":
                held[part] = train(out, end)
            else:
                held[part] = (
                    checks(out, end)
                    if part == "checks"
                    else speed(part, out, end, arguments.routing, arguments.full_attention)
                )
        except Exception:  # the other parts still run
            traceback.print_exc()
            held[part] = False
        note(out, held=held, **{f"{part}_seconds": round(time.time() - start, 1)})
    print(json.dumps(held), flush=True)
    raise SystemExit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
