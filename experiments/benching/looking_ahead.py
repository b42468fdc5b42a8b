"""How long a forecast of linear form takes on a GPU: the fused kernel, its logits alone, and torch's operators."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from rgpu.experiments.benching.timing import clock_of, samples
from rgpu.kernels.device_forecast import DeviceForecast
from rgpu.kernels.lookahead import REAL, Case, lookahead, made

COLUMNS = (
    "provider", "activation", "rows", "inputs", "horizons", "experts", "map_bytes", "us_p50", "us_p20", "us_p80", "samples",
    "timing",
)  # fmt: skip
MAPS = 8  # taken in turn, as the layers of a model are
REPEATS, SECONDS = 20, 1.0


def measure(device: torch.device, cases: tuple[Case, ...] = REAL) -> Iterator[dict[str, Any]]:
    """A row for every case and provider. Those on the device give the same forecast, torch in the map's dtype with its own
    sums; `round_trip` is what the engine calls: rows from the host, logits back, float32 maps."""
    for number, case in enumerate(case for case in cases if case.activation != "none"):
        make = torch.Generator().manual_seed(number)
        drawn = [made(case, make) for _ in range(MAPS)]
        maps = [[tensor.to(device) for tensor in one] for one in drawn]
        hosts = [[tensor.float().numpy() for tensor in one] for one in drawn]
        count_H = torch.zeros(case.horizons, dtype=torch.int32, device=device)
        providers: dict[str, Callable[..., object]] = {
            "lookahead": partial(_fused, case, count_H), "logits": partial(_logits, case), "torch": partial(_torch, case),
            "round_trip": DeviceForecast(device),
        }  # fmt: skip
        for name, call in providers.items():
            there = name != "round_trip"
            calls = [partial(call, *(one if there else on_host)) for one, on_host in zip(maps, hosts, strict=True)]
            for once in calls:
                once()
            took, timing = samples(calls, device, clock_of(device, 1), REPEATS, SECONDS, graph=there)
            quick, middle, slow = torch.tensor(took).double().quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
            yield {
                "provider": name, "activation": case.activation, "rows": case.tokens, "inputs": case.inputs,
                "horizons": case.horizons, "experts": case.experts,
                "map_bytes": maps[0][1].nbytes if there else hosts[0][1].nbytes,
                "us_p50": round(1e6 * middle, 3), "us_p20": round(1e6 * quick, 3), "us_p80": round(1e6 * slow, 3),
                "samples": len(took), "timing": timing,
            }  # fmt: skip


def _fused(
    case: Case, count_H: torch.Tensor, x_ND: torch.Tensor, weight_DM: torch.Tensor, bias_M: torch.Tensor
) -> object:
    return lookahead(x_ND, weight_DM, bias_M, case.experts, case.top_k, case.activation, case.width, count_H)


def _logits(case: Case, x_ND: torch.Tensor, weight_DM: torch.Tensor, bias_M: torch.Tensor) -> object:
    return lookahead(x_ND, weight_DM, bias_M, case.experts, case.top_k, "none")


def _torch(case: Case, x_ND: torch.Tensor, weight_DM: torch.Tensor, bias_M: torch.Tensor) -> object:
    z_NHE = ((x_ND.to(weight_DM.dtype) @ weight_DM).float() + bias_M).view(len(x_ND), case.horizons, case.experts)
    if case.activation == "share":
        p_NHE = (z_NHE.softmax(-1) * case.top_k).clamp(max=1)
    else:
        best = z_NHE.topk(case.top_k + 1).values
        p_NHE = (z_NHE - (best[..., -2:-1] + best[..., -1:]) * 0.5).sigmoid()
    return p_NHE.mean(0).topk(case.width)
