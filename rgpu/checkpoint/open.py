"""`open_experts`: the reader that fits a checkpoint, chosen by what its config says."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgpu.checkpoint.awq import awq
from rgpu.checkpoint.bitsandbytes import bitsandbytes
from rgpu.checkpoint.compressed_tensors import compressed_tensors
from rgpu.checkpoint.expert_tensors import ExpertTensors
from rgpu.checkpoint.fp8 import fp8
from rgpu.checkpoint.gguf_experts import GgufExperts
from rgpu.checkpoint.gptq import gptq
from rgpu.checkpoint.modelopt import modelopt
from rgpu.checkpoint.mxfp4 import mxfp4
from rgpu.checkpoint.plain import FLOATS, Quantizer, plain
from rgpu.checkpoint.reader import Codec, ExpertReader, MakeCodec, Modules, SafetensorsExperts
from rgpu.errors import InputError

CODECS: dict[str, MakeCodec] = {
    "compressed-tensors": compressed_tensors, "gptq": gptq, "awq": awq, "fp8": fp8, "mxfp4": mxfp4, "modelopt": modelopt,
    "bitsandbytes": bitsandbytes,
}  # fmt: skip
_PART = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
_INTERLEAVED = ("gpt_oss",)  # model types whose stacked gate_up alternates gate and up


def open_experts(path: Path, quantize: Quantizer | None = None) -> ExpertReader:
    """The experts of the checkpoint at `path`: a folder with config.json and safetensors files, a .gguf file (or the first
    of its parts), or a folder of them.

    `quantize` rounds float experts to that format; without it they must be bfloat16. Raises `InputError` for a checkpoint
    whose kind or layout rgpu does not read, and for `quantize` on one that is quantised already.
    """
    files = _gguf_files(path)
    if files:
        if quantize is not None:
            raise _already(path, "GGUF")
        return GgufExperts(files)
    settings, text = _settings(path)
    layers = text.get("num_hidden_layers")
    if layers is not None and not isinstance(layers, int):
        raise InputError(f"cannot read {path}/config.json: got num_hidden_layers {layers!r}; expected an integer")
    tensors = ExpertTensors(path, interleaved=text.get("model_type") in _INTERLEAVED, layers=layers)
    first = tensors.modules(tensors.layer_ids[0], 0)
    if not settings or _is_plain(first):
        codec: Codec = plain(settings, first, quantize)
    else:
        method = str(settings.get("quant_method"))
        kind = next((name for name in CODECS if method == name or method.startswith(f"{name}_")), None)
        if kind is None:
            raise InputError(
                f"cannot read {path}: got quant_method {method!r}; expected one of {', '.join(CODECS)}; choose another "
                "quantisation of the model"
            )
        if quantize is not None:
            raise _already(path, kind)
        codec = CODECS[kind](settings, first)
    return SafetensorsExperts(tensors, codec)


def _already(path: Path, kind: str) -> InputError:
    return InputError(
        f"cannot quantise {path}: got a {kind} checkpoint, quantised already; expected float weights; leave quantize out"
    )


def _is_plain(first: Modules) -> bool:
    """Whether the experts were left out of the quantisation."""
    return all(
        {"weight"} <= set(module.tensors) <= {"weight", "bias"} and module.tensors["weight"].dtype in FLOATS
        for module in first
    )


def _settings(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(quantisation settings or {}, config of the text model) of a model folder."""
    if not folder.is_dir():
        raise InputError(
            f"no model at {folder}: expected a folder with config.json and safetensors weights, or .gguf files"
        )
    config = _json(folder / "config.json")
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    settings: dict[str, Any] = {}
    for place in (text, config):
        for name in ("compression_config", "quantization_config"):
            if isinstance(place.get(name), dict):
                settings = place[name]
    other = folder / "hf_quant_config.json"
    if other.exists() and str(settings.get("quant_method", "modelopt")).startswith("modelopt"):
        settings = {"quant_method": "modelopt"} | settings | (_json(other).get("quantization") or {})
    return settings, {"model_type": config.get("model_type"), **text}


def quantisation(folder: Path) -> Mapping[str, Any]:
    """The quantisation settings of a model folder, {} where it has none."""
    return _settings(folder)[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: got {error}; expected the model's json; download it again") from None
    if not isinstance(content, dict):
        raise InputError(f"cannot read {path}: got {type(content).__name__}; expected a json object; download it again")
    return content


def _gguf_files(path: Path) -> list[Path]:
    """All parts of the GGUF model at `path`, or [] where it is no GGUF model."""
    if path.suffix == ".gguf":
        start = path
    elif path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob("*.gguf"))
        models = {match[1] if (match := _PART.match(file.name)) else file.name for file in found}
        if len(models) > 1:
            raise InputError(
                f"cannot choose in {path}: got {len(models)} GGUF models, {', '.join(sorted(models))}; expected one; name its "
                "file"
            )
        if not found:
            return []
        start = found[0]
    else:
        return []
    part = _PART.match(start.name)
    if part is None:
        return [start]
    files = [start.with_name(f"{part[1]}-{i:05d}-of-{part[3]}.gguf") for i in range(1, int(part[3]) + 1)]
    for file in files:
        if not file.exists():
            raise InputError(
                f"incomplete model {start}: got no {file.name}; expected {part[3]} parts; download it again"
            )
    return files
