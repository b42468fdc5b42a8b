"""Kernels on a GPU: are they right, how fast are they, and how fast does the link bring experts; into results/gpu/<date>/.

    python benchmarks/gpu.py [--out DIR] [--budget 520] [--formats int4-g128,mxfp4] [--rows 1,64]
    python benchmarks/gpu.py --interpret --formats int4-g32 --rows 1     the same checks on a CPU, tiny, in the interpreter

Needs torch, triton, numpy and nothing else. Every part is a process of its own, so that a fault of one leaves the others;
rows are on the disk as soon as they are known. Exit code 0: all right; 1: a kernel is wrong or did not run; 2: no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"correctness": 0.5, "transfers": 0.08, "kernels": 0.42}  # shares of the budget
FAULT = 3  # exit code of a part that lost the GPU: started again, it goes on after the case that broke it
RESTARTS = 20
FIRST = ("int4-g128", "mxfp4", "fp8_block")
ROWS = (1, 2, 4, 8, 16, 64, 512)


def correctness(arguments: argparse.Namespace, out: Path, end: float) -> int:
    import torch

    from rgpu.experiments.benching.correctness import COLUMNS, Case, broken, cases, check, small_kernels
    from rgpu.experiments.benching.table import append_rows, read_rows

    path = out / "correctness.csv"
    done = {tuple(row[name] for name in COLUMNS[:6]) for row in read_rows(path)} if path.exists() else set()
    device = torch.device("cpu" if arguments.interpret else "cuda")
    if not done and not arguments.only_experts:
        for row in small_kernels(device):
            append_rows(path, [row], COLUMNS)
    rows = {"rows": arguments.rows} if arguments.rows else {}
    planned: list[Case] = [
        case for case in cases(arguments.formats, real=not arguments.interpret, **rows)
        if case.key not in done and not (arguments.interpret and case.kernel == "decode_fast")  # inline assembly
    ]  # fmt: skip
    for number, case in enumerate(planned):
        if time.time() > end:
            note(out, correctness_not_reached=len(planned) - number)
            break
        try:
            row, lost = check(case, device), False
        except Exception as error:  # a kernel that cannot be compiled or launched must not hide the others
            row, lost = broken(case, error), gone(device)
        append_rows(path, [row], COLUMNS)
        if lost:
            return FAULT
    return 0


def transfers(arguments: argparse.Namespace, out: Path, end: float) -> int:
    import torch

    from rgpu.experiments.benching.table import append_rows
    from rgpu.experiments.benching.transfers import COLUMNS, measure

    for row in measure(torch.device("cuda")):
        append_rows(out / "transfers.csv", [row], COLUMNS)
        if time.time() > end:
            break
    return 0


def kernels(arguments: argparse.Namespace, out: Path, end: float) -> int:
    from rgpu.experiments.benching import looking_ahead, measuring, running
    from rgpu.experiments.benching.table import append_rows
    from rgpu.kernels.shapes import FAMILIES

    device = running.device_of("cuda")
    setting = running.setting_of(device, os.cpu_count() or 1, 20, 1.0, 0, {"benchmark": "gpu", "rows": ROWS})
    note(out, memory_gb_per_s=setting.roof.gb_per_s, matrix_gflops=setting.roof.gflops, device=setting.facts["device"])
    try:
        for row in looking_ahead.measure(device):
            append_rows(out / "lookahead.csv", [row], looking_ahead.COLUMNS)
    except Exception as error:  # must not hide the others; its checks are among those of correctness
        note(out, lookahead_failed=str(error)[:200])
        if gone(device):
            return FAULT
    written = 0
    failed: list[str] = []
    skipped: dict[str, str] = {}
    rest = [name for name, _ in FAMILIES if name not in (*FIRST, "bf16")]
    chosen = [arguments.formats] if arguments.formats else [FIRST, ("int4-g32", "bf16"), rest]
    for formats in chosen:
        before = 0

        def heard(found: measuring.Measured) -> None:
            nonlocal before, written
            append_rows(out / "kernels.csv", found.rows[before:], measuring.COLUMNS)
            before, written = len(found.rows), written + len(found.rows) - before

        found = running.run(
            ("Qwen3-30B-A3B", "gpt-oss-20b"), formats, arguments.rows or ROWS, None, setting, end - time.time(), heard
        )
        failed, skipped = failed + found.failed, {**skipped, **found.skipped}
        note(out, kernels_failed=failed, kernels_skipped=skipped, kernels_rows=written)
    return 0


def gone(device: Any) -> bool:
    """Whether the GPU no longer answers this process, as after a read of memory that does not exist."""
    import torch

    try:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return False
    except Exception:
        return True


def note(out: Path, **facts: Any) -> None:
    """Adds facts to summary.json, whole or not at all."""
    path = out / "summary.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**known, **facts}, indent=2, default=str) + "\n")
    temporary.replace(path)


def summarise(out: Path) -> dict[str, Any]:
    """Counts over what is on the disk, and every case that is wrong."""
    from rgpu.experiments.benching.table import read_rows

    rows = read_rows(out / "correctness.csv") if (out / "correctness.csv").exists() else []
    wrong = [row for row in rows if row["right"] != "True" or row["repeats"] != "True"]
    names = [f"{' '.join(list(row.values())[:6])}: {row['note'] or row['error']}" for row in wrong]
    note(out, correctness_rows=len(rows), wrong=names)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--budget", type=float, default=520, help="seconds for all parts")
    parser.add_argument("--formats", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--rows", type=lambda text: tuple(int(n) for n in text.split(",")), default=())
    parser.add_argument("--parts", type=lambda text: tuple(text.split(",")), default=tuple(PARTS))
    parser.add_argument("--interpret", action="store_true", help="correctness alone, on a CPU")
    parser.add_argument("--only-experts", action="store_true", help="without topk, sort_pairs, resolve and gather")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # within a part's own process
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def stop(line: str) -> None:
    sys.stderr.write(f"gpu: {line}\n")
    raise SystemExit(2)


def main() -> None:
    arguments = options()
    if arguments.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported
    for link in ("kernels/decode.py", "experiments/benching/cases.py"):
        if not (ROOT / "rgpu" / link).exists():
            stop(
                f"no rgpu/{link}: got a checkout without its links; make them: ln -s ../kernels ../experiments ../conf rgpu/"
            )
    sys.path.insert(0, str(ROOT))
    try:
        import torch
        import triton

        from rgpu.experiments.benching.cases import FORMATS
        from rgpu.results.provenance import manifest
    except ImportError as error:
        stop(f"cannot import: {error}; expected a Python with torch, triton and numpy; give make gpu GPU_PYTHON=...")
    if unknown := sorted(set(arguments.formats) - set(FORMATS)):
        stop(f"--formats: got {unknown[0]!r}; expected some of {', '.join(FORMATS)}")
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        stop(f"--parts: got {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    if not arguments.interpret and not torch.cuda.is_available():
        stop(f"no GPU: torch {torch.__version__} finds none; run this where there is one, or give --interpret")
    out = arguments.out or ROOT / "results" / "gpu" / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    if arguments.part:
        raise SystemExit(globals()[arguments.part](arguments, out, arguments.end))
    out.mkdir(parents=True, exist_ok=True)
    note(out, triton=triton.__version__, **manifest({"arguments": sys.argv[1:]}))
    codes = {}
    began = time.time()
    end = began
    for part in ("correctness",) if arguments.interpret else arguments.parts:
        end = max(end, time.time()) + arguments.budget * PARTS[part]
        codes[part] = in_own_process(part, out, end)
    note(out, seconds=round(time.time() - began, 1), exit_codes=codes)
    summary = summarise(out)
    print(json.dumps({key: value for key, value in summary.items() if key not in ("config", "versions")}), flush=True)
    raise SystemExit(1 if summary["wrong"] or summary.get("kernels_failed") or any(codes.values()) else 0)


def in_own_process(part: str, out: Path, end: float) -> int:
    """The part's exit code; 124 where it did not stop by itself."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--out", str(out), "--end", str(end)]
    for _ in range(RESTARTS):
        try:
            code = subprocess.run(command, timeout=max(5.0, end - time.time()) + 60).returncode
        except subprocess.TimeoutExpired:
            return 124
        if code != FAULT or time.time() > end:
            return code
    return FAULT


if __name__ == "__main__":
    main()
