"""Train the reference model (Qwen3-MoE architecture) on the corpus; interrupt it any time, it resumes where it stopped."""

import json
import time
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from rgpu.experiments.reference.training import (
    append_json,
    batch_at,
    held_out_loss,
    learning_rate,
    load_state,
    load_tokens,
    save_state,
)


def build(cfg: DictConfig) -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(**OmegaConf.to_container(cfg.model), output_router_logits=True)  # type: ignore[arg-type]
    config._attn_implementation = "sdpa"
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("grouped_mm")
    return model


@hydra.main(version_base="1.3", config_path="pkg://rgpu.conf", config_name="train_reference")
def main(cfg: DictConfig) -> None:
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(cfg).to(device)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": cfg.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.95), fused=True)
    state = out / "state.safetensors"
    step = load_state(state, model, optimizer) if state.exists() else 0
    train, heldout = load_tokens(Path(cfg.corpus), "train"), load_tokens(Path(cfg.corpus), "heldout")
    per_step = cfg.batch * cfg.context
    total = cfg.tokens // per_step
    bar = tqdm(total=total, initial=step, unit="step", disable=None)
    model.train()
    while step < total:
        began = time.perf_counter()
        ids = batch_at(train, step, cfg.batch, cfg.context, cfg.seed).to(device)
        lr = learning_rate(step, total, cfg.lr, cfg.warmup_steps, cfg.decay_fraction)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(device, torch.bfloat16):
            result = model(ids[:, :-1])
            logits = result.logits.flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:].flatten())
            balance = result.aux_loss
        (loss + cfg.model.router_aux_loss_coef * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds = time.perf_counter() - began
        row = {
            "step": step,
            "tokens": step * per_step,
            "loss": loss.item(),
            "balance": balance.item(),
            "lr": lr,
            "tokens_per_s": per_step / seconds,
        }
        if step % cfg.eval_every == 0 or step == total:
            row |= {f"heldout_{k}": v for k, v in held_out_loss(model, heldout, cfg.eval_tokens, cfg.context).items()}
        append_json(out / "loss.jsonl", row)
        if step % cfg.save_every == 0 or step == total:
            save_state(state, model, optimizer, step)
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    print(json.dumps({"steps": step, "tokens": step * per_step, "state": str(state)}))


if __name__ == "__main__":
    main()
