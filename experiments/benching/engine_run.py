"""One decode run of a made model on a GPU under a memory cap: tokens, times, bytes, and what the link and the card allow.

Legend: B sequences, N tokens.
"""

import gc
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from rgpu.experiments.benching.made_model import ForcedRouting, MadeSource, dense_model, skeleton
from rgpu.kernels.compute_triton import on_gpu
from rgpu.memory.pinned import page_locked
from rgpu.planning.memory_plan import CUDA_BYTES, MemoryPlan, plan_memory
from rgpu.planning.model_facts import ModelFacts
from rgpu.policies.loop import DEMAND_LOADS, HITS, LOADED_BYTES
from rgpu.policies.policy import Policy
from rgpu.quant.format import QuantFormat
from rgpu.quant.layout import SlotLayout
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.architecture import Architecture, architecture_of
from rgpu.runtime.model_bytes import facts_of
from rgpu.runtime.session import OffloadSession
from rgpu.runtime.telemetry import Telemetry

SETTLED = 4  # decode steps that are left out: the first ones are run as always and captured
COLUMNS = (
    "model", "format", "routing", "cap_gib", "policy", "handler", "graphs", "fused", "batch", "slots", "experts", "hit_rate",
    "misses_per_token", "mb_per_token", "tpot_ms_p20", "tpot_ms_p50", "tpot_ms_p80", "tokens_per_s", "ttft_ms",
    "link_ms_per_token",
    "stall_ms_per_token", "dense_gib", "planned_gib", "reserved_gib", "used_gib", "captured", "same_tokens", "steps", "error",
)  # fmt: skip


@dataclass
class Made:
    """A made model, ready to be run under several caps; `locked` must stay open."""

    name: str
    format: str
    config: PretrainedConfig
    architecture: Architecture
    facts: ModelFacts
    model: PreTrainedModel
    source: MadeSource
    ids_NLK: np.ndarray
    routing: str
    locked: Any


def make(name: str, config: PretrainedConfig, fmt: str, quant: QuantFormat, ids_NLK: np.ndarray, routing: str) -> Made:
    """Dense part on the GPU, experts in page-locked memory, routing from recorded ids."""
    gc.collect()
    torch.cuda.empty_cache()
    device = torch.device("cuda")
    architecture = architecture_of(config, name)
    layout = SlotLayout(architecture.intermediate, architecture.hidden, quant, architecture.bias)
    facts = facts_of(skeleton(config), "bfloat16", fmt.partition("-")[0], name=name)
    source = MadeSource(layout, len(architecture.layer_ids), architecture.experts, device, 0)
    locked = page_locked(source.rows_SB)
    locked.__enter__()
    return Made(name, fmt, config, architecture, facts, dense_model(config, architecture, device, 0), source, ids_NLK, routing,
                locked)  # fmt: skip


def run(
    made: Made, policy: Policy, cap_bytes: int, handler: str, *, graphs: bool = True, batch: int = 1, tokens: int = 64,
    prompt: int = 32, wanted: torch.Tensor | None = None, context: int = 2048, warm: bool = False,
    fused: bool = False,
) -> tuple[dict[str, Any], torch.Tensor]:  # fmt: skip
    """(the row, the tokens [B, N]). `warm`: pools are filled before the first token."""
    device, total = torch.device("cuda"), torch.cuda.get_device_properties(0).total_memory
    plan = plan_memory(
        made.facts, vram=cap_bytes, ram=1 << 40, context=context, batch=batch, prefill_rows=batch * prompt
    )
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (cap_bytes - CUDA_BYTES) / total))
    telemetry, before = Telemetry(), torch.cuda.memory_allocated()
    shape = made.source.shape(made.architecture.top_k)
    uses_LE = np.ones((shape.layers, shape.experts), np.int64) if warm else None
    pool = PoolConfig("layer", plan.slots, None, plan.staging)
    forced = ForcedRouting(made.ids_NLK, batch * prompt, device)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, made.config.get_text_config().vocab_size, (batch, prompt), generator=generator).to(device)
    session = OffloadSession(
        made.model, None, made.architecture, made.source,
        lambda shape: Controller(policy, shape, pool, keep_log=False, uses_LE=uses_LE),
        record=False, handler=handler, kernel=on_gpu, telemetry=telemetry, device=device, graphs=graphs,
        fused=fused,
    )  # fmt: skip
    try:
        with forced.on(made.model) if made.routing else nullcontext():
            sequences: torch.Tensor = made.model.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                cache_implementation="static", pad_token_id=0,
            )  # fmt: skip
        torch.cuda.synchronize()
        out = sequences[:, prompt:].cpu()
        row = _row(made, policy, plan, cap_bytes, handler, graphs, batch, session, telemetry) | {"fused": fused}
        row["dense_gib"] = round(before / 2**30, 3)
        row["same_tokens"] = None if wanted is None else bool(torch.equal(out, wanted))
        return row, out
    finally:
        session.close()
        del session
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


def _row(
    made: Made, policy: Policy, plan: MemoryPlan, cap_bytes: int, handler: str, graphs: bool, batch: int,
    session: OffloadSession, telemetry: Telemetry,
) -> dict[str, Any]:  # fmt: skip
    rows = telemetry.rows[1 + SETTLED :]
    begins = np.array([row.begin_s for row in rows])
    took_ms = 1e3 * np.diff(begins)
    counts = np.sum([row.counts for row in rows], axis=0)
    done, steps = session.transfer.counts(), len(rows)
    total = done.demand_bytes + done.ahead_bytes
    loaded = int(counts[LOADED_BYTES])
    hits, misses = int(counts[HITS]), int(counts[DEMAND_LOADS])
    free, whole = torch.cuda.mem_get_info()
    p20, p50, p80 = np.percentile(took_ms, [20, 50, 80])
    return {
        "model": made.name, "format": made.format, "routing": made.routing, "cap_gib": round(cap_bytes / 2**30, 2),
        "policy": policy.name, "handler": handler, "graphs": graphs, "batch": batch, "slots": plan.slots,
        "experts": made.architecture.experts, "hit_rate": round(hits / (hits + misses), 4),
        "misses_per_token": round(misses / steps, 3),
        "mb_per_token": round(loaded / steps / 1e6, 3), "tpot_ms_p20": round(p20, 3), "tpot_ms_p50": round(p50, 3),
        "tpot_ms_p80": round(p80, 3), "tokens_per_s": round(batch * 1e3 / p50, 2),
        "ttft_ms": round(1e3 * (telemetry.rows[1].begin_s - telemetry.rows[0].begin_s), 2),
        "link_ms_per_token": round(1e3 * done.busy_s * (loaded / max(1, total)) / steps, 3),
        "stall_ms_per_token": round(1e3 * sum(row.stall_s for row in rows) / steps, 3),
        "planned_gib": round(plan.used("vram") / 2**30, 3), "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
        "used_gib": round((whole - free) / 2**30, 3), "captured": 0 if session.graphs is None else session.graphs.captured,
        "steps": steps, "error": "",
    }  # fmt: skip
