"""Prompts from text files: documents separated by a line `<|endoftext|>`, one file a domain."""

from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rgpu.errors import InputError

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and what a trace header says of their sequence (`domain`, `document`, `kind`, `switches`)."""

    token_ids: tuple[int, ...]
    meta: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: Path | str, tokenizer: Any, tokens: int, limit: int | None = None) -> list[Prompt]:
    """The first `tokens` tokens of each document, the files of a folder taking turns, at most `limit` prompts.

    Raises `InputError` for a missing, unreadable or empty path and for a number that makes no prompt.
    """
    path = Path(path)
    for name, number in (("prompt_tokens", tokens), ("limit", limit)):
        if number is not None and number < 1:
            raise InputError(f"cannot make prompts: got {name}={number}; expected 1 or more")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise InputError(
            f"cannot read prompts {path}: got no text file; expected a .txt file or a folder of them; set prompts="
        )
    columns = []
    for file in files:
        try:
            pieces = file.read_text(encoding="utf-8").split(END_OF_TEXT)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read prompts {file}: got {error}; expected UTF-8 text; choose another file"
            ) from None
        texts = [(index, piece.strip()) for index, piece in enumerate(pieces) if piece.strip()]
        columns.append([(file.stem, index, text) for index, text in texts[:limit]])
    turns = [entry for row in zip_longest(*columns) for entry in row if entry is not None]
    if not turns:
        raise InputError(
            f"cannot read prompts {path}: got no text; expected documents separated by '{END_OF_TEXT}' lines"
        )
    prompts = []
    for domain, index, text in turns[:limit]:
        ids = tokenizer(text[: 64 * tokens], add_special_tokens=False, verbose=False)["input_ids"][:tokens]
        if ids:
            prompts.append(Prompt(tuple(ids), {"domain": domain, "document": f"{domain}/{index}"}))
    return prompts
