"""The tensors of a safetensors checkpoint: found by name, read whole or one index of their first dimension at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rgpu.errors import InputError


class TensorFiles:
    """Every tensor of the checkpoint in `folder`, by name. Files are mapped when first asked for and stay so until
    `close`. Raises `InputError` for a folder without readable safetensors files and a tensor that two of them hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = checkpoint_files(folder)
        self._open: dict[Path, Any] = {}
        self._file: dict[str, Path] = {}
        for file in self.files:
            for name in self._handle(file).keys():  # noqa: SIM118  (a safetensors handle is no dict)
                if self._file.setdefault(name, file) != file:
                    raise InputError(
                        f"cannot read {folder}: got {name} in {self._file[name].name} and in {file.name}; expected it in "
                        "one of them; delete files that belong to another model"
                    )

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, "pt")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"cannot read {file}: got {first_line(error)}; expected a complete safetensors file; download it again"
                ) from None
        return self._open[file]

    def _slice(self, name: str) -> Any:
        return self._handle(self._file[name]).get_slice(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the file's header."""
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, at: int | None = None) -> torch.Tensor:
        """The tensor in its stored dtype, or index `at` of its first dimension: only that part of the file is read."""
        part = self._slice(name)
        try:
            if at is not None:
                tensor: torch.Tensor = part[at]
            else:
                tensor = part[:] if part.get_shape() else self._handle(self._file[name]).get_tensor(name)
        except SafetensorError as error:
            raise InputError(
                f"cannot read {name} in {self._file[name]}: got {first_line(error)}; expected a tensor that torch can hold"
            ) from None
        return tensor

    def close(self) -> None:
        """Drops the file handles (and their mappings)."""
        self._open.clear()


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a local model folder; `InputError` when there is none or one that the index names is
    missing."""
    if not folder.is_dir():
        raise InputError(f"no model at {folder}: expected a local folder with config.json and safetensors weights")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted({str(Path(name)) for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"cannot read {index}: got {first_line(error)}; expected a weight_map; download it again"
            ) from None
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"] if (folder / "model.safetensors").exists() else []
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        got = f"no {missing[0]}" if missing else "no *.safetensors weights"
        raise InputError(
            f"incomplete model folder {folder}: got {got}; expected safetensors weights; download it again"
        )
    return files


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
