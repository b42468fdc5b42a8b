"""`rgpu generate` in this process, on tiny models that have a tokenizer."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rgpu.experiments.generate import run

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(93))]


def with_tokenizer(folder: Path, template: str | None = None) -> Path:
    """The model in `folder` gets a tokenizer of 96 words, with a chat template where one is given."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=template
    )
    made.save_pretrained(folder)
    return folder


def generate(folder: Path, *overrides: str) -> dict[str, Any]:
    """The document of `rgpu generate`: five tokens after three."""
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        cfg = compose("generate", [f"model={folder}", "max_new_tokens=5", "prompt='w1 w2 w3'", *overrides])
    return run(cfg)
