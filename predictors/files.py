"""The two files of a saved predictor, `<stem>.safetensors` and `<stem>.json`: written, told apart, checked."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from rgpu.errors import InputError

FORMAT = "rgpu-predictor-1"


def write_atomic(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Safetensors file at `path`, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_pair(stem: str, tensors: dict[str, np.ndarray], document: dict[str, Any]) -> Path:
    """Both files, each replaced atomically; the json holds the other's digest, so that halves of two saves are told."""
    path, header = Path(f"{stem}.safetensors"), Path(f"{stem}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, tensors)
    partial = header.with_name(header.name + ".partial")
    partial.write_text(
        json.dumps({"format": FORMAT, **document, "tensors_sha256": _digest(path)}, indent=2, default=str) + "\n"
    )
    os.replace(partial, header)
    return path


def stem_of(path: str | Path) -> str:
    return str(path).removesuffix(".safetensors").removesuffix(".json")


def read_header(stem: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(f"{stem}.json").read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}")
        document["kind"], document["_target_"], document["parameters"], document["schema"]  # noqa: B018
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {stem}.json: {error}; expected a predictor that rgpu train wrote") from None
    return dict(document)


def read_tensors(stem: str, document: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors that `document` was written with; `ValueError` where they are another save's."""
    path = Path(f"{stem}.safetensors")
    if _digest(path) != document.get("tensors_sha256"):
        raise ValueError("its safetensors and json are not of one save")
    tensors: dict[str, np.ndarray] = load_file(path)
    return tensors


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
