"""Prompts of a live run as tokens, and its text as it comes. Text goes to stderr: stdout is for the JSON document."""

import sys
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase, TextStreamer

from rgpu.errors import InputError
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.generation import check_length, encoded


def inputs_of(
    cfg: DictConfig, tokenizer: PreTrainedTokenizerBase | None, architecture: Architecture
) -> dict[str, torch.Tensor]:
    """The batch of `cfg.prompt`, checked against what the model reads."""
    prompts = prompts_of(cfg.prompt)
    if cfg.stream and len(prompts) > 1:
        raise InputError(f"stream: got true with {len(prompts)} prompts; expected one prompt; set stream=false")
    inputs = encoded(tokenizer, prompts, str(cfg.model), bool(cfg.chat))
    check_length(inputs, cfg.max_new_tokens, getattr(architecture.config, "max_position_embeddings", None))
    return inputs


def prompts_of(value: Any) -> list[str]:
    """One text or several."""
    given = OmegaConf.to_container(value) if OmegaConf.is_config(value) else [value]
    if not isinstance(given, list) or not given or not all(isinstance(text, str | int | float) for text in given):
        raise InputError(f"prompt: got {given!r}; expected a text or a list of texts")
    return [str(text) for text in given]


def streamer_of(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> "ErrorStreamer | None":
    """What shows the text while it is made, where `cfg.stream` wants it."""
    return ErrorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if cfg.stream else None


class ErrorStreamer(TextStreamer):  # type: ignore[misc]
    """transformers' `TextStreamer` on stderr."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Whole words, and a line break at the end."""
        sys.stderr.write(text + ("\n" if stream_end else ""))
        sys.stderr.flush()
