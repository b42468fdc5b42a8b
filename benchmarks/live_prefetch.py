"""Keeps what a live contest of predictors measured: dated rows of its times per token, live and simulated.

    rgpu reproduce suite=predictors predicting.only=live
    python benchmarks/live_prefetch.py [results/predictors] [--note TEXT] [--dry]

Appends to benchmarks/results/live_prefetch.jsonl. `ratio`: time per token without waits for other processes over that of LRU
without prefetch in the same rounds (the mean of two runs; `lru again`: the second over the first), with a 95 % interval over
texts where it was measured; `wall_ratio` with those waits; a verdict where both tell. `seconds_S`, `wall_S`: the sums of each
text that they come from. `load_average` of the machine before and after, and the share of runs beside which others left it
alone. Method `replay` is the simulator's, of the same decisions.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from rgpu.results.rows import read

RESULTS = Path(__file__).parent / "results" / "live_prefetch.jsonl"
METRICS = {"tpot_ratio": "ratio", "wall_ratio": "wall_ratio", "tpot_median": "tpot_median", "stall": "stall",
           "bytes_loaded": "bytes_loaded", "predicting": "predicting", "planning": "planning"}  # fmt: skip
BY_TEXT = {"tpot_ratio": "seconds_S", "wall_ratio": "wall_S"}
ABOUT = ("predictor", "case", "policy", "machine", "slots", "capacity_share", "method", "simulated", "verdict")
PROVENANCE = ("seed", "config_hash", "commit", "versions", "hardware", "date")


def rows_of(table: pd.DataFrame, live: dict[str, Any], note: str) -> list[dict[str, Any]]:
    """One for each metric of each arm, at each capacity over each link."""
    found = table[(table["experiment"] == "prefetch_live") & table["metric"].isin(METRICS)]
    run = {"load_average": live["load_average"], "quiet_runs": live["quiet_runs"], "texts": live["texts"],
           "steps": live["steps"], "repeats": live["repeats"]}  # fmt: skip
    arms = {
        (t["link"], t["slots"], a["predictor"], a["planner"], a["policy"]): a for t in live["tables"] for a in t["arms"]
    }
    made = []
    for record in found.to_dict("records"):
        known = {str(k): v for k, v in record.items() if not pd.isna(v)}
        made.append(
            {"benchmark": "live_prefetch", "metric": METRICS[record["metric"]], "unit": known["unit"]}
            | {name: known[name] for name in (*ABOUT, "value", "lo", "hi") if name in known}
            | _by_text(known, arms) | run | {name: known[name] for name in PROVENANCE if name in known}
            | ({"note": note} if note else {})
        )  # fmt: skip
    return made


def _by_text(row: dict[str, Any], arms: dict[tuple[Any, ...], dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of each text that a measured ratio comes from."""
    name = BY_TEXT.get(row["metric"])
    arm = arms.get(tuple(row.get(key) for key in ("machine", "slots", "predictor", "case", "policy")))
    if name is None or arm is None or row["simulated"]:
        return {}
    return {name: [round(value, 6) for value in arm[name]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/predictors"))
    parser.add_argument("--note", default="", help="kept in the rows")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    arguments = parser.parse_args()
    live = json.loads((arguments.folder / "report.json").read_text())["live"]
    made = rows_of(read(arguments.folder / "rows.parquet"), live, arguments.note)
    print(f"{len(made)} rows of {live['texts']} texts")
    if not arguments.dry:
        with RESULTS.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in made)


if __name__ == "__main__":
    main()
