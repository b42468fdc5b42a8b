"""Turn a training state into what ships: a transformers checkpoint in bf16 and small held-out texts."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3MoeForCausalLM

END_OF_TEXT = "<|endoftext|>"


def export_model(state: Path, model: Qwen3MoeForCausalLM, tokenizer: Path, out: Path) -> None:
    """Write config, bf16 weights (per-expert keys, as transformers saves them), tokenizer and generation defaults."""
    tensors = load_file(state)
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(tensors[f"model.{name}"])
    model.config.output_router_logits = False
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0, bos_token_id=0)
    model.to(torch.bfloat16).save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(tokenizer)),
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        model_max_length=model.config.max_position_embeddings,
        padding_side="left",
    )
    fast.save_pretrained(out)


def export_held_out(corpus: Path, out: Path, chars: int, seed: int = 0) -> dict[str, list[str]]:
    """Write `<domain>.txt` of about `chars` characters of held-out documents each; returns the documents used.

    A document longer than a quarter of the budget is cut at a line end, so that every file holds several documents.
    """
    table = pd.read_parquet(corpus / "corpus.parquet")
    table = table[table.split == "heldout"]
    out.mkdir(parents=True, exist_ok=True)
    used: dict[str, list[str]] = {}
    rng = np.random.default_rng(seed)
    for domain, group in table.groupby("domain"):
        pieces, size = [], 0
        for i in rng.permutation(len(group)):
            row = group.iloc[i]
            text = row.text[: chars // 12]
            text = text[: text.rfind("\n")] if "\n" in text[len(text) // 2 :] else text
            pieces.append(text.strip())
            used.setdefault(str(domain), []).append(f"{row.source}/{row.doc}")
            size += len(text)
            if size >= chars:
                break
        (out / f"{domain}.txt").write_text(f"\n{END_OF_TEXT}\n".join(pieces) + "\n", encoding="utf-8")
    return used
