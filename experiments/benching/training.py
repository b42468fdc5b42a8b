"""Do predictors that learn by descent train on a GPU as they do on the processor, and how long do both take?"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rgpu.predictors.history_gru import HistoryGru
from rgpu.predictors.low_rank import LowRank
from rgpu.predictors.mlp import Mlp
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import over_layers
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace

COLUMNS = ("predictor", "device", "epochs", "fit_s", "fit_s_cpu", "recall_layer", "recall_layer_cpu", "recall_token",
           "recall_token_cpu", "near")  # fmt: skip
TRACE = Path("assets") / "traces" / "reference_hidden.safetensors"
EPOCHS = 6
SEQUENCES = 6  # scored: enough to see a training that went wrong
NEAR = 0.02  # of recall: sums on a GPU come in another order, and early stopping may fall on another epoch
FAMILIES: dict[str, Any] = {"mlp": Mlp, "low_rank": LowRank, "history_gru": HistoryGru}


def compare(root: Path, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """A row a family, trained for `EPOCHS` from the same seed on `device` and on the processor, scored at the model's top-k:
    `recall_layer` one layer ahead, `recall_token` one token."""
    trace = load_trace(root / TRACE)
    parts, k = split(trace), trace.header.top_k
    held = trace.select(parts.scored[:SEQUENCES])
    for name, family in FAMILIES.items():
        row: dict[str, Any] = {"predictor": name, "device": device, "epochs": EPOCHS}
        for where, suffix in ((device, ""), ("cpu", "_cpu")):
            predictor = family(epochs=EPOCHS, device=where)
            began_s = time.perf_counter()
            predictor.fit(trace, parts)
            if where != "cpu":
                torch.cuda.synchronize()
            row[f"fit_s{suffix}"] = round(time.perf_counter() - began_s, 2)
            found = over_layers(evaluate(predictor, held, [k], 1))
            for case in ("layer", "token"):
                value = next(r["value"] for r in found if (r["metric"], r["case"], r["width"]) == ("recall", case, k))
                row[f"recall_{case}{suffix}"] = round(value, 4)
        row["near"] = all(abs(row[f"recall_{case}"] - row[f"recall_{case}_cpu"]) <= NEAR for case in ("layer", "token"))
        yield row
