"""Build the reference model's corpus: documents, byte-pair tokenizer (trained on the training split), token arrays."""

import json
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from rgpu.experiments.reference.corpus import documents, fetch, split_of

END_OF_TEXT = "<|endoftext|>"


def collect(cfg: DictConfig, out: Path) -> pd.DataFrame:
    """Every usable document once: columns domain, source, doc, split, text."""
    rows, seen = [], set()
    sources: Any = OmegaConf.to_container(cfg.corpus.sources)
    for source in tqdm(sources, desc="sources", disable=None):
        for name, text in documents(source, fetch(source, out / "packages")):
            if text not in seen:
                seen.add(text)
                rows.append((source["domain"], source["name"], name, split_of(text), text))
    return pd.DataFrame(rows, columns=["domain", "source", "doc", "split", "text"])


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE, so every string round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@hydra.main(version_base="1.3", config_path="pkg://rgpu.conf", config_name="build_corpus")
def main(cfg: DictConfig) -> None:
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    table = collect(cfg, out)
    table.to_parquet(out / "corpus.parquet")
    train = table[table.split == "train"]
    # An equal share of every domain, so that no kind of text owns the vocabulary.
    share = min(int(train.groupby("domain").text.apply(lambda t: t.str.len().sum()).min()), 6_000_000)
    texts: list[str] = []
    for _, group in train.groupby("domain"):
        shuffled = group.sample(frac=1.0, random_state=0)
        texts += shuffled[shuffled.text.str.len().cumsum() <= share].text.tolist()
    tokenizer = train_tokenizer(texts, cfg.vocab_size)
    tokenizer.save(str(out / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    summary = {}
    for (domain, split), group in table.groupby(["domain", "split"]):
        shuffled = group.sample(frac=1.0, random_state=0)
        ids = [i for e in tokenizer.encode_batch(shuffled.text.tolist()) for i in [*e.ids, end]]
        np.save(out / f"tokens-{domain}-{split}.npy", np.asarray(ids, dtype=np.uint16), allow_pickle=False)
        summary[f"{domain}/{split}"] = {
            "documents": len(group),
            "chars": int(group.text.str.len().sum()),
            "tokens": len(ids),
        }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
