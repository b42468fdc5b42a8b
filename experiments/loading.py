"""A model and its tokenizer from a folder or the hub, with one line for whatever is wrong with them."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rgpu.errors import InputError
from rgpu.traces.moe_layers import moe_layers

DTYPES = ("float32", "bfloat16", "float16")


def load_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """(model, tokenizer) of a local folder or a hub name, in evaluation mode.

    Raises `InputError` for a missing, unreadable or non-MoE model and an unknown dtype.
    """
    if dtype not in DTYPES:
        raise InputError(f"cannot load model: got dtype={dtype}; expected one of {', '.join(DTYPES)}")
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(
            f"cannot load model {name}: got a folder without config.json; expected a transformers checkpoint"
        )
    if not folder.is_dir() and (
        folder.exists() or folder.is_absolute() or name.count("/") != 1 or name.startswith((".", "assets/"))
    ):
        raise InputError(
            f"cannot load model {name}: got no such folder; expected a checkpoint folder or a hub name 'owner/name'"
        )
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"cannot load model {name}: got {reason}; expected a complete transformers checkpoint"
        ) from error
    moe_layers(model)
    return model.eval(), tokenizer
