"""Generate text with a model whose experts run from a slot pool."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rgpu.checkpoint.experts import checkpoint_files
from rgpu.experiments.command import command
from rgpu.experiments.inputs import pool_of
from rgpu.experiments.live import set_up
from rgpu.experiments.live_lossy import announce, conclude, report
from rgpu.experiments.live_memory import Sizes, measured, options_of, overrun, planned
from rgpu.experiments.live_peaks import Peaks
from rgpu.experiments.live_report import FillBar, check_outputs, counted, timed, write_passes
from rgpu.experiments.live_room import cache_of
from rgpu.experiments.live_store import dtype_of, stored
from rgpu.experiments.live_text import inputs_of, streamer_of
from rgpu.experiments.live_verify import verified
from rgpu.memory.exhausted import told_in_a_line
from rgpu.memory.process import PeakMemory
from rgpu.replay.controller import Controller
from rgpu.replay.hot_start import save_profile
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.generation import generate
from rgpu.runtime.live_timeline import write_live_timeline
from rgpu.runtime.loading import load_tokenizer
from rgpu.runtime.session import OffloadSession
from rgpu.runtime.telemetry import Telemetry
from rgpu.traces.storage import save_trace
from rgpu.types import MoEShape

REMEDY = "give fewer slots (pool.slots, memory.vram, memory.ram), less context or fewer prompts at once"


@command("generate")
def run(cfg: DictConfig) -> dict[str, Any]:
    folder = Path(cfg.model)
    dtype_of(cfg.dtype)
    check_outputs(cfg)
    checkpoint_files(folder)
    setup, architecture = set_up(cfg), read_architecture(folder)
    made = stored(cfg, architecture)
    tokenizer = load_tokenizer(folder)
    inputs = inputs_of(cfg, tokenizer, architecture)
    assert tokenizer is not None
    batch, prompt = inputs["input_ids"].shape
    sizes = Sizes(batch, prompt, cfg.max_new_tokens, cfg.verify)
    plan, later = planned(cfg, architecture, made, setup, sizes)

    def pool(shape: MoEShape) -> PoolConfig:
        if plan is None:
            return pool_of(cfg.pool, shape)
        return PoolConfig(cfg.pool.scope, plan.slots, None, cfg.pool.staging, cfg.pool.miss)

    bar = FillBar()

    def controller(shape: MoEShape) -> Controller:
        decides = setup.controller(shape, pool(shape))
        bar.expect(decides)
        return decides

    lossy = made.options.get("lossy")
    if lossy is not None:
        announce(cfg, lossy)
    wants_trace = cfg.verify or cfg.trace_out is not None
    telemetry = Telemetry(slices=cfg.timeline_out is not None, also=bar)
    options = {
        "hidden": setup.hidden,
        "record": wants_trace,
        "telemetry": telemetry,
        **made.options,
        **options_of(plan),
    }
    with ExitStack() as stack:
        stack.callback(bar.close)
        with PeakMemory() as peak, told_in_a_line("run the model", REMEDY):
            before, peaks = peak.nbytes, Peaks(peak)
            session = stack.enter_context(OffloadSession.open(folder, controller, **options))
            bar.close()
            if later is not None:
                later.watch(session, peaks, session.graphs is not None)
            text = generate(
                session.model, tokenizer, inputs, cfg.max_new_tokens, logits=cfg.verify,
                streamer=streamer_of(cfg, tokenizer), cache=cache_of(session, later),
            )  # fmt: skip
            if later is not None:
                later.conclude()
        memory = session.memory() | measured(plan, peaks, before)
        if later is not None:
            memory["later"] = later.section()
        result, passes = timed(session)
        result = counted(session) | result
        _write(cfg, session, passes, setup.policy.name)
        if wants_trace:
            trace = session.trace()
        if cfg.trace_out is not None:
            save_trace(trace, Path(cfg.trace_out))
        result["lossy"] = None if session.rerouter is None else session.rerouter.section()
        if cfg.verify:
            result |= verified(cfg, session, setup, made, text, pool(session.shape), trace)
    del session
    if lossy is not None:
        result["lossy"]["report"] = report(cfg, options, lambda shape: setup.controller(shape, pool(shape)), tokenizer)
        conclude(lossy, result["lossy"])
    if line := overrun(memory):
        sys.stderr.write(f"rgpu generate: {line}\n")
    rows, single = text.tokens_BN.tolist(), text.tokens_BN.shape[0] == 1
    return {
        "text": text.texts[0] if single else text.texts,
        "token_ids": rows[0] if single else rows,
        "prompt_tokens": text.inputs["attention_mask"].sum(1).tolist(),
        "policy": setup.policy.name,
        "predictor": setup.predictor,
        "scope": cfg.pool.scope,
        **result,
        "tokens_per_s": round(text.new_tokens / text.seconds, 2),
        "seconds": round(text.seconds, 3),
        "memory": memory,
        "model": str(cfg.model),
        "dtype": cfg.dtype,
        "format": made.format,
        "store": options["store"],
        "trace": cfg.trace_out,
    }


def _write(cfg: DictConfig, session: OffloadSession, passes: list[dict[str, Any]], policy: str) -> None:
    """The files that were asked for, of the run alone: before anything else passes through the session."""
    if cfg.telemetry_out is not None:
        write_passes(Path(cfg.telemetry_out), passes)
    if cfg.timeline_out is not None:
        title = f"{Path(cfg.model).name}, {policy}, miss={cfg.pool.miss}, store={cfg.store}"
        write_live_timeline(cfg.timeline_out, session.telemetry.slices or [], title)
    if cfg.profile_out is not None:
        save_profile(Path(cfg.profile_out), session.controller.uses_LE(), Path(cfg.model).name)


if __name__ == "__main__":
    run.main()
