"""Make what ships in assets/: weights, held-out text, traces, model card, from a finished training state."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from rgpu.experiments.command import command
from rgpu.experiments.loading import load_model
from rgpu.experiments.prompts import Prompt, read_prompts
from rgpu.experiments.record import record
from rgpu.experiments.reference import card
from rgpu.experiments.reference.export import export_held_out, export_model
from rgpu.experiments.reference.switching import record_stepwise, switch_prompts
from rgpu.experiments.train_reference import build
from rgpu.traces.storage import load_trace


def make_traces(cfg: DictConfig, out: Path) -> None:
    """Generations on every held-out document, some with hidden states, and topic switches fed token by token."""
    model, tokenizer = load_model(str(out / "reference"))
    folder, made = out / "heldout", out / "traces"
    made.mkdir(parents=True, exist_ok=True)
    g, h = cfg.generation, cfg.hidden
    every = read_prompts(folder, tokenizer, g.prompt_tokens)
    options: dict[str, Any] = {"max_new_tokens": g.max_new_tokens, "temperature": g.temperature, "seed": g.seed}
    record(model, tokenizer, every, made / "reference.safetensors", provenance=dict(g), **options)
    few = read_prompts(folder, tokenizer, h.prompt_tokens, h.prompts)
    options = {"max_new_tokens": h.max_new_tokens, "temperature": h.temperature, "seed": h.seed, "hidden": True}
    record(model, tokenizer, few, made / "reference_hidden.safetensors", provenance=dict(h), **options)
    documents: dict[str, list[Prompt]] = {}
    for prompt in read_prompts(folder, tokenizer, 2 * cfg.switch.tokens):
        kept = documents.setdefault(str(prompt.meta["domain"]), [])
        if len(prompt.token_ids) == 2 * cfg.switch.tokens and len(kept) < cfg.switch.documents:
            kept.append(prompt)
    switches = switch_prompts(documents, cfg.switch.tokens)
    record_stepwise(model, switches, made / "reference_switch.safetensors", dict(cfg.switch))


def make_card(cfg: DictConfig, out: Path) -> dict[str, Any]:
    """Measure the shipped weights and traces and write the card."""
    model, _ = load_model(str(out / "reference"))
    log = card.loss_log(Path(cfg.state) / "loss.jsonl")
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "language": card.language(model, Path(cfg.corpus), log, cfg.training, cfg.card_tokens),
        "routing": card.routing(load_trace(out / "traces" / "reference.safetensors")),
    }
    from hydra import compose

    sources = OmegaConf.to_container(compose(overrides=["+corpus=reference"]).corpus.sources)
    card.draw_loss(log, out / "reference" / "loss.svg")
    card.write(out / "reference", facts, sources, cfg.training)  # type: ignore[arg-type]
    return facts


@command("make_assets")
def run(cfg: DictConfig) -> dict[str, Any]:
    out = Path(cfg.out)
    torch.set_num_threads(cfg.threads)
    if "model" in cfg.stages:
        state, tokenizer = Path(cfg.state) / "state.safetensors", Path(cfg.corpus) / "tokenizer.json"
        export_model(state, build(cfg.training), tokenizer, out / "reference")
        export_held_out(Path(cfg.corpus), out / "heldout", cfg.held_out_chars)
    if "traces" in cfg.stages:
        make_traces(cfg, out)
    facts = make_card(cfg, out) if "card" in cfg.stages else {}
    sizes = {str(p.relative_to(out)): p.stat().st_size for p in sorted(out.rglob("*")) if p.is_file()}
    return {"bytes": sizes, "total_bytes": sum(sizes.values()), **facts}


if __name__ == "__main__":
    run.main()
