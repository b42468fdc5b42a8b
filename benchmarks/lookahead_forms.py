"""Forms of gate look-ahead on a model with shared experts; appends dated rows to benchmarks/results/lookahead_forms.jsonl.

    python benchmarks/lookahead_forms.py [--steps 600] [--threads 1]

The shipped reference model has no shared expert, which `form=two_step` needs. So a small Qwen2-MoE (8 layers, 16 experts,
top-2, a gated shared expert, hidden size 96) is trained here on the bytes of three quarters of the documents in assets/heldout,
then reads the others; every form is scored on half of these, what a form takes from a trace comes from the other half. A few
minutes make it a poor model of text; what it routes by is learnt all the same. No weights are kept.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from rgpu.experiments.prompts import END_OF_TEXT, Prompt
from rgpu.experiments.record import record
from rgpu.experiments.study.predictor_metrics import difference, interval, pick
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.lookahead_forms import FORMS
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import over_layers
from rgpu.results.provenance import stamp
from rgpu.traces.split import held_apart, split
from rgpu.traces.storage import load_trace

RESULTS = Path(__file__).parent / "results" / "lookahead_forms.jsonl"
TEXT = Path("assets/heldout")
LAYERS, EXPERTS, TOP_K, HIDDEN = 8, 16, 2, 96
CONTEXT, BATCH, RATE, READ = (
    128,
    16,
    3e-3,
    256,
)  # bytes of a training window, windows a step, peak rate, bytes read a document


def model_of(seed: int) -> Any:
    torch.manual_seed(seed)
    config = Qwen2MoeConfig(
        vocab_size=256, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=2 * HIDDEN, moe_intermediate_size=HIDDEN // 2, shared_expert_intermediate_size=HIDDEN,
        num_experts=EXPERTS, num_experts_per_tok=TOP_K, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
        max_position_embeddings=1024, output_router_logits=True, router_aux_loss_coef=0.01, tie_word_embeddings=True,
        use_sliding_window=False, dtype="float32",
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config)


def documents() -> tuple[list[Prompt], list[Prompt]]:
    """(trained on, read afterwards): every fourth document of each domain is read."""
    trained, read = [], []
    for file in sorted(TEXT.glob("*.txt")):
        pieces = [piece.strip() for piece in file.read_text(encoding="utf-8").split(END_OF_TEXT)]
        for i, piece in enumerate(p for p in pieces if p):
            meta = {"domain": file.stem, "document": f"{file.stem}/{i}"}
            (read if i % 4 == 3 else trained).append(Prompt(tuple(piece.encode()), meta))
    return trained, read


def trained(model: Any, texts: list[Prompt], steps: int, seed: int) -> float:
    """Trains in place; mean loss in nats a byte of the last tenth of the steps (of 0 steps: NaN)."""
    stream = torch.tensor([byte for text in texts for byte in text.token_ids])
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    losses = []
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 - 0.9 * step / steps)
        starts = torch.randint(0, len(stream) - CONTEXT, (BATCH,), generator=generator)
        ids = torch.stack([stream[s : s + CONTEXT] for s in starts.tolist()])
        found = model(input_ids=ids, labels=ids)
        optimiser.zero_grad()
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float((found.loss - found.aux_loss * model.config.router_aux_loss_coef).detach()))
        if step % 50 == 0:
            print(f"step {step}: {losses[-1]:.3f} nats a byte", flush=True)
    model.eval()
    return float(np.mean(losses[-max(1, steps // 10) :])) if losses else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    facts = stamp({"benchmark": "lookahead_forms", "steps": asked.steps}, seed=asked.seed)
    learnt, read = documents()
    began = time.perf_counter()
    model = model_of(asked.seed)
    loss = trained(model, learnt, asked.steps, asked.seed)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)
        texts = [Prompt(p.token_ids[:READ], p.meta) for p in read]
        path = record(model, tokenizer, texts, folder / "t.safetensors", mode="prompt", hidden=True)
        whole = load_trace(path)
        whole.passes = np.arange(whole.tokens, dtype=np.int32)  # as if decoded token by token: every token speaks
        whole.phase = np.ones(whole.tokens, np.uint8)
        parts = split(whole)
        known, scored = whole.select(parts.calibration), whole.select(parts.scored)
        held_apart(known, scored, "look-ahead")
        found = {}
        for form in FORMS:
            predictor = GateLookahead(model=folder / "model", form=form).fit(known)
            found[form] = pick(over_layers(evaluate(predictor, scored, [TOP_K])), metric="recall", width=TOP_K)
    print(f"{asked.steps} steps in {seconds:.0f} s: {loss:.3f} nats a byte; {scored.tokens} tokens scored", flush=True)
    with RESULTS.open("a") as out:
        for form, rows in found.items():
            for row in rows:
                (raw,) = pick(found["raw"], horizon=row["horizon"])
                at, (more, _) = interval(row), difference(row, raw)
                told = {
                    "benchmark": "lookahead_forms", "metric": "recall", "unit": "share", "form": form,
                    "horizon": row["horizon"], "width": TOP_K, "value": at.estimate, "lo": at.lo, "hi": at.hi,
                    "over_raw": more.estimate, "over_raw_lo": more.lo, "over_raw_hi": more.hi, "loss": loss,
                    "steps": asked.steps, "tokens": scored.tokens, "sequences": scored.sequences, "seconds": seconds,
                }  # fmt: skip
                out.write(json.dumps(told | facts) + "\n")
                ahead = f"+{row['horizon']}" if row["horizon"] else "next"
                print(
                    f"{form:20s} {ahead:>4}  {at.estimate:.3f}  over raw {more.estimate:+.3f} [{more.lo:+.3f}, {more.hi:+.3f}]"
                )


if __name__ == "__main__":
    main()
