"""The simulator against runs on a GPU: rows of gpu_engine.py replayed, timed on the virtual clock and compared.

    python benchmarks/gpu_validation.py --rows DIR/engine.csv --transfers DIR/transfers.csv --routing DIR [--out DIR]
                                        [--figures DIR]

`--routing`: the folder of ids that the runs had. Needs no GPU. Writes validation.csv and validation.json into --out (default:
the folder of the rows), the figure validation_gpu into --figures. Exit code 0: every decision is the run's; 1: some differ; 2:
bad input.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# the numbers of a layer are those of gpt-oss-20b, so that is what gpt-oss-120b is predicted from
FAMILIES = {"Qwen3-30B-A3B": "Qwen3-30B-A3B", "gpt-oss-20b": "gpt-oss-20b", "gpt-oss-120b": "gpt-oss-20b"}


def facts(name: str) -> Any:
    from rgpu.experiments.benching import made_model
    from rgpu.runtime.model_bytes import facts_of

    made = {
        "Qwen3-30B-A3B": (made_model.qwen3_30b(), "int4"), "gpt-oss-20b": (made_model.gpt_oss(24, 32), "mxfp4"),
        "gpt-oss-120b": (made_model.gpt_oss(36, 128), "mxfp4"),
    }  # fmt: skip
    config, fmt = made[name]
    return facts_of(made_model.skeleton(config), "bfloat16", fmt, name=name)


def work(arguments: argparse.Namespace) -> int:
    import numpy as np

    from rgpu.errors import InputError
    from rgpu.experiments.benching.gpu_runs import decided, usable
    from rgpu.experiments.benching.gpu_validation import COLUMNS, rates_of, validate
    from rgpu.experiments.benching.gpu_validation_figure import draw
    from rgpu.experiments.benching.table import read_rows, write_rows
    from rgpu.experiments.suites.published.clock import machine
    from rgpu.experiments.suites.validating.judging import verdict

    rows = [row for row in read_rows(arguments.rows) if usable(row)]
    files = {"Qwen3-30B-A3B": "qwen", "gpt-oss-20b": "oss", "gpt-oss-120b": "big"}
    if strange := sorted({row["model"] for row in rows} - set(files)):
        raise InputError(f"--rows: got the model {strange[0]}; expected some of {', '.join(files)}")
    models = list(dict.fromkeys(row["model"] for row in rows))
    wanted = {name: arguments.routing / f"{files[name]}.npy" for name in models}
    if lacking := [str(path) for path in wanted.values() if not path.is_file()]:
        raise InputError(f"--routing: got no {lacking[0]}; expected the ids that the runs had; give their folder")
    ids = {name: np.load(path, allow_pickle=False) for name, path in wanted.items()}
    known = {name: facts(name) for name in models}
    profile = machine(arguments.profile)
    rates = rates_of(read_rows(arguments.transfers), arguments.memory, profile.flop_per_s)
    runs = [decided(row, ids[row["model"]], known[row["model"]]) for row in rows]
    points, fitted = validate(runs, rates, profile, {name: FAMILIES[name] for name in models})
    out = arguments.out or arguments.rows.parent
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "validation.csv", points, COLUMNS)
    judged: dict[str, Any] = {}
    for name in ("error", "error_without_misses", "error_profile_misses", "error_profile"):
        held = [(p[name], p["spread"]) for p in points if p["role"] == "validation"]
        found = verdict([e for e, _ in held], [s for _, s in held])
        judged[name] = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
    document = {
        "decisions_same": sum(run.same for run in runs), "rows": len(runs), "judged": judged,
        "rates_gb_per_s": {
            "memory": arguments.memory, "link": rates.link_bytes_per_s / 1e9, "zero_copy": rates.zero_copy_bytes_per_s / 1e9,
        },
        "fitted_us": {
            name: {
                **{"launch_fused" if fused else "launch": round(1e6 * of.launch_s[fused], 1) for fused in of.launch_s},
                "sync": round(1e6 * of.sync_s, 1), "link_latency": round(1e6 * of.latency_s, 1),
            }
            for name, of in fitted.items()
        },
    }  # fmt: skip
    (out / "validation.json").write_text(json.dumps(document, indent=2) + "\n")
    if arguments.figures:
        draw(points, judged["error"], arguments.figures, "validation_gpu")
    for p in points:
        print(
            f"{p['model']:14} {p['cap_gib']:>5} {p['policy']:9} {p['handler']:9} fused={p['fused']:5} batch {p['batch']} "
            f"{p['role']:11} decisions {'same' if p['decisions_same'] else 'DIFFER'}  {p['measured_ms']:>7} "
            f"[{p['measured_ms_p20']}, {p['measured_ms_p80']}]  {p['predicted_ms']:>7}  {p['error']:+.1%}  "
            f"{p['error_without_misses']:+.1%}  {p['error_profile_misses']:+.1%}  {p['error_profile']:+.1%}"
        )
    print(json.dumps(document["fitted_us"]))
    for name, found in judged.items():
        print(
            f"{name}: median {found['median_error']:.1%}, within 10 %: {found['within_10_percent']:.0%}, {found['verdict']}"
        )
    return 0 if document["decisions_same"] == len(runs) else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--transfers", type=Path, required=True)
    parser.add_argument("--routing", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--figures", type=Path, default=None)
    parser.add_argument("--memory", type=float, default=4150.0, help="GB/s of device memory, measured by a copy")
    parser.add_argument("--profile", default="h200", help="of conf/hardware, to be compared with")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from rgpu.errors import InputError

    try:
        code = work(arguments)
    except (InputError, OSError) as error:
        sys.stderr.write(f"gpu_validation: {error}\n")
        raise SystemExit(2) from None
    raise SystemExit(code)


if __name__ == "__main__":
    main()
