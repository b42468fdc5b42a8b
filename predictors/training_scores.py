"""What training minimises and what it is judged by, whatever gives the logits.

Legend: B rows of a batch, L MoE layers, H forecast rows a layer, E experts, K top-k.
"""

from collections.abc import Callable, Iterable

import torch

from rgpu.predictors.training_rows import Rows

TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-6, 13))
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]  # row numbers [B] and their logits, float32 [L, B, H, E]


def batches(logits_of: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, step: int) -> Batches:
    """Logits of some rows, a batch of `step` at a time."""
    for rows_B in rows.split(step):
        yield rows_B, logits_of(rows_B)


def plackett_luce(logits_LBHE: torch.Tensor, ids_LBHK: torch.Tensor, valid_LBH: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the summed negative log likelihood of the ranked top-k, drawn without replacement (Luce 1959)."""
    chosen = logits_LBHE.gather(3, ids_LBHK)
    rest = torch.logsumexp(logits_LBHE.scatter(3, ids_LBHK, -1e9), -1, keepdim=True)
    left = torch.logcumsumexp(torch.cat([rest, chosen.flip(-1)], -1), -1)[..., 1:].flip(
        -1
    )  # what each choice was among
    return ((left - chosen).sum(-1) * valid_LBH).sum() / logits_LBHE.shape[1]


def pairwise_margin(
    logits_LBHE: torch.Tensor, ids_LBHK: torch.Tensor, valid_LBH: torch.Tensor, margin: float
) -> torch.Tensor:
    """Mean over rows of what every routed expert lacks to be `margin` above every other one, mean over such pairs."""
    chosen_LBHK1 = logits_LBHE.gather(3, ids_LBHK)[..., None]
    rest_LBH1E = logits_LBHE.scatter(3, ids_LBHK, -1e9)[..., None, :]
    pairs = ids_LBHK.shape[3] * max(1, logits_LBHE.shape[3] - ids_LBHK.shape[3])
    lacking_LBH = torch.relu(margin - chosen_LBHK1 + rest_LBH1E).sum((-2, -1)) / pairs
    return (lacking_LBH * valid_LBH).sum() / logits_LBHE.shape[1]


@torch.no_grad()
def mean_recall(held: Batches, rows: Rows) -> torch.Tensor:
    """Recall at width K of each forecast row on held-out rows, mean over layers: float64 [H]."""
    hits = torch.zeros(rows.layers, rows.horizon + 1, dtype=torch.float64)
    count = torch.zeros_like(hits)
    for rows_B, logits in held:
        ids, valid = rows.targets(rows_B)
        top = logits.cpu().topk(rows.top_k, -1).indices
        found = (top[..., None] == ids[..., None, :]).any(-1).sum(-1)
        hits += (found * valid).sum(1)
        count += valid.sum(1) * rows.top_k
    exists = count > 0
    return (hits / count.clamp(min=1)).sum(0) / exists.sum(0).clamp(min=1)


@torch.no_grad()
def temperature(held: Batches, rows: Rows) -> torch.Tensor:
    """Scale of each map's logits, least binary cross-entropy of `sigmoid(scale * (logit - threshold))`: float32 [L, H].

    The threshold lies midway between a row's K-th and (K+1)-th logit."""
    losses = torch.zeros(len(TEMPERATURES), rows.layers, rows.horizon + 1)
    for rows_B, logits in held:
        ids, valid = rows.targets(rows_B)
        logits = logits.cpu()
        if rows.experts > rows.top_k:
            logits = logits - logits.topk(rows.top_k + 1, -1).values[..., -2:].mean(-1, keepdim=True)
        for i, scale in enumerate(TEMPERATURES):
            scaled = logits * scale
            loss = torch.nn.functional.softplus(scaled).sum(-1) - scaled.gather(3, ids).sum(-1)
            losses[i] += (loss * valid).sum(1)
    return torch.tensor(TEMPERATURES)[losses.argmin(0)]
