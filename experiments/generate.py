"""Generate text with a model whose experts run from a slot pool."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rgpu.experiments.command import command
from rgpu.experiments.live import dtype_of, prompts_of, set_up
from rgpu.policies.loop import DEMAND_LOADS, FILL_LOADS, LOADED_BYTES, PROACTIVE_LOADS
from rgpu.replay.controller import Controller
from rgpu.runtime.generation import compare_with_replay, compare_with_resident, generate
from rgpu.runtime.session import OffloadSession
from rgpu.traces.storage import save_trace


@command("generate")
def run(cfg: DictConfig) -> dict[str, Any]:
    prompts, dtype, setup = prompts_of(cfg.prompt), dtype_of(cfg.dtype), set_up(cfg)
    folder = Path(cfg.model)
    wants_trace = cfg.verify or cfg.trace_out is not None
    with OffloadSession.open(
        folder,
        setup.controller,
        dtype=dtype,
        store=cfg.store,
        threads=cfg.threads,
        hidden=setup.hidden,
        record=wants_trace,
    ) as session:
        made = generate(session.model, session.tokenizer, prompts, cfg.max_new_tokens)
        memory = session.memory()
        result = _figures(session.controller)
        if wants_trace:
            trace = session.trace()
        if cfg.trace_out is not None:
            save_trace(trace, Path(cfg.trace_out))
        if cfg.verify:
            pad = int(session.tokenizer.pad_token_id or 0) if session.tokenizer is not None else 0
            fresh, pool = setup.controller(session.shape), setup.pool(session.shape)
            result |= compare_with_replay(session.controller, trace, pool, fresh, setup.calibration, cfg.seed)
            result |= compare_with_resident(folder, session.architecture, dtype, made, pad)
            result["failed"] = [name for name, same in result.items() if name.startswith("identical_") and not same]
    rows, single = made.tokens_BN.tolist(), len(prompts) == 1
    return {
        "text": made.texts[0] if single else made.texts,
        "token_ids": rows[0] if single else rows,
        "prompt_tokens": made.inputs["attention_mask"].sum(1).tolist(),
        "policy": setup.policy.name,
        "predictor": setup.predictor,
        "scope": cfg.pool.scope,
        **result,
        "tokens_per_s": round(made.new_tokens / made.seconds, 2),
        "seconds": round(made.seconds, 3),
        "memory": memory,
        "model": str(cfg.model),
        "dtype": cfg.dtype,
        "trace": cfg.trace_out,
    }


def _figures(controller: Controller) -> dict[str, Any]:
    counts, hits = controller.counts, controller.hits
    demand, ahead, fill = (int(counts[c]) for c in (DEMAND_LOADS, PROACTIVE_LOADS, FILL_LOADS))
    return {
        "slots": controller.layout.slots,
        "staging": controller.staging,
        "accesses": controller.accesses,
        "hits": hits,
        "prefetch_hits": controller.prefetch_hits,
        "misses": controller.accesses - hits,
        "hit_rate": hits / max(1, controller.accesses),
        "loads": demand + ahead + fill,
        "demand_loads": demand,
        "proactive_loads": ahead,
        "fill_loads": fill,
        "bytes_loaded": int(counts[LOADED_BYTES]),
    }


if __name__ == "__main__":
    run.main()
