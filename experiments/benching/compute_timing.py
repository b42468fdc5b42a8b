"""What one expert takes to compute from its slot, alone: for passes in which every event has as many members."""

import time
from pathlib import Path

import numpy as np
import torch

from rgpu.experiments.benching.copy_timing import line
from rgpu.experiments.benching.live_events import Bench, Configuration
from rgpu.runtime.executor import FETCH
from rgpu.runtime.session import OffloadSession, event_compute
from rgpu.traces.moe_layers import moe_layers
from rgpu.types import MoEShape


def expert_seconds(bench: Bench, config: Configuration, rounds: int) -> float:
    """Seconds that one member more adds to an event of one token: `begin`, so many members, `finish`; median of rounds.

    Members of a random layer and expert each round, straight from the store, in the engine's own arithmetic."""

    def controller(shape: MoEShape):  # type: ignore[no-untyped-def]
        return bench.controller(config, shape)

    rng = np.random.default_rng(bench.seed)
    with OffloadSession.open(
        Path(bench.model), controller, store="ram", threads=1, handler=FETCH, record=False, cache=bench.cache
    ) as session:
        compute = event_compute(session.store, session.architecture, None, 1)
        modules = [layer.experts for layer in moe_layers(session.model)]
        k, experts = session.shape.top_k, session.shape.experts
        took: dict[int, list[float]] = {n: [] for n in range(1, k + 1)}
        rows = session.store.rows_SB
        with torch.inference_mode():
            for _ in range(rounds):
                layer = int(rng.integers(len(modules)))
                ids = rng.permutation(experts)[:k]
                x_TD, weights_TK = torch.randn(1, session.shape.hidden), torch.full((1, k), 1 / k)
                for n, seconds in took.items():
                    members = [(int(e), layer * experts + int(e)) for e in ids[:n]]
                    began = time.perf_counter()
                    compute.begin(modules[layer], x_TD, ids[None].astype(np.int16), weights_TK)
                    compute.members(rows, members)
                    compute.finish()
                    seconds.append(time.perf_counter() - began)
    each, _ = line(np.array(list(took), float), np.array([np.median(s) for s in took.values()]))
    return max(each, 0.0)
