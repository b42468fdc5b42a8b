"""Which chances eviction keeps of a forecast made before attention, chosen on calibration text alone; appends dated rows to
benchmarks/results/forecast_past.jsonl.

    python benchmarks/forecast_past.py      # about five minutes

`pre_attention` says nothing of a layer's next event when that layer evicts. Either what it said of the event that is being
decided is dropped (`dropped`: what the controller does) or it counts once more (`kept`). Both are replayed on divisions of the
documents that defaults are chosen on (`predicting.only=choices`), with `expected_value` and `joint_forecast`, and clocked as in
the study of prefetching. All times simulated.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np

from rgpu.experiments.study.choosing import REPEATS, behind, divided, first_as_good
from rgpu.experiments.study.prefetch_time import BASELINE, COST, Arm, Court, slots_of
from rgpu.experiments.suites.predicting.choices import calibration_of, text_of, with_states
from rgpu.experiments.suites.predicting.material import window
from rgpu.predictors.pre_attention import PreAttention
from rgpu.replay.controller import Controller
from rgpu.results.provenance import stamp

RESULTS = Path(__file__).parent / "results" / "forecast_past.jsonl"
MODEL, TOKENS = "assets/reference", 112
CELLS = tuple((machine, share) for machine in ("rtx4090", "h200") for share in (0.25, 0.5))
ARM = Arm("pre_attention", "expected_value", "joint_forecast")
KEPT = ("dropped", "kept")


def main() -> None:
    parser = argparse.ArgumentParser(description="which chances eviction keeps of a forecast made before attention")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args()
    facts = stamp(vars(asked))
    text = calibration_of(Path("assets/traces"))
    with tempfile.TemporaryDirectory() as name:
        read = with_states(text, MODEL, Path(name))
        saved = {kept: np.zeros((asked.repeats, len(CELLS))) for kept in KEPT}
        for number, (fitting, held) in enumerate(divided(read, asked.repeats)):
            predictor, part = PreAttention(model=MODEL).fit(fitting), window(held, 0, TOKENS)
            for kept in KEPT:
                with (
                    nullcontext()
                    if kept == "dropped"
                    else patch.object(Controller, "_forget", lambda self, layer: None)
                ):
                    court = Court(part, {"pre_attention": predictor})
                    for cell, (machine, share) in enumerate(CELLS):
                        slots = slots_of(part, share)
                        own, lru = (court.tpot(arm, slots, machine, COST) for arm in (ARM, BASELINE))
                        saved[kept][number, cell] = 1 - own / lru
    mean_CR = np.array([saved[kept].mean(1) for kept in KEPT])
    (less, noise), picked = behind(mean_CR), KEPT[first_as_good(mean_CR)]
    with RESULTS.open("a") as out:
        for i, kept in enumerate(KEPT):
            by_cell = {
                f"{machine} {share:.0%}": v for (machine, share), v in zip(CELLS, saved[kept].mean(0), strict=True)
            }
            row = {
                "benchmark": "forecast_past", "metric": "tpot_saved", "unit": "share of LRU's", "past": kept,
                "value": float(mean_CR[i].mean()), "divisions": mean_CR[i].tolist(), "behind": float(less[i]),
                "noise": float(noise[i]), "cells": by_cell, "picked": kept == picked, "text": text_of(text), "tokens": TOKENS,
            }  # fmt: skip
            out.write(json.dumps(row | facts) + "\n")
            cells = ", ".join(f"{name} {100 * v:.1f} %" for name, v in by_cell.items())
            print(
                f"{kept:8s} {100 * mean_CR[i].mean():.2f} % ({cells}); behind {100 * less[i]:.2f}, noise {100 * noise[i]:.2f}"
            )


if __name__ == "__main__":
    main()
