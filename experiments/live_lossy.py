"""A lossy run from its config: the mode, what it says on stderr, and its quality and speed beside the exact run's."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.planning.memory_plan import MemoryRow
from rgpu.planning.model_facts import ModelFacts
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.lossy import Lossy
from rgpu.runtime.quality import Text, compare_on
from rgpu.runtime.session import ControllerFactory, OffloadSession
from rgpu.runtime.stores import check_lossy, low_layout
from rgpu.runtime.telemetry import Telemetry

_PROMPT = 32  # tokens of a text that are read in one pass


def lossy_of(cfg: DictConfig, architecture: Architecture, quantize: Any) -> Lossy | None:
    """The mode of `cfg.lossy`, checked against everything else that `cfg` asks for."""
    if cfg.get("lossy") is None:
        return None
    try:
        mode: Lossy = built(cfg.lossy, "lossy").mode
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    check_lossy(mode, architecture, torch.device(str(cfg.device)), quantize)
    if mode.did == "substituted" and str(cfg.policy["_target_"]).endswith("OnDemand"):
        raise InputError(
            "lossy=substitute: got policy=on_demand, which keeps no expert that could stand in for another; expected one "
            "that keeps some; set policy=lru"
        )
    if cfg.lossy.report:
        _files(cfg.lossy)
    return mode


def rows_of(mode: Lossy | None, architecture: Architecture, facts: ModelFacts) -> list[MemoryRow]:
    """What a mode takes of a cap."""
    if mode is None:
        return []
    if mode.low is not None:
        nbytes = facts.layers * facts.experts * low_layout(architecture, mode.low).stride + 8192
        return [MemoryRow("low-precision experts", nbytes, "ram", f"lossy={mode.name}")]
    if mode.did == "substituted":
        return [
            MemoryRow("similarities", 4 * facts.layers * facts.experts**2, "ram", "of every two experts of a layer")
        ]
    return []


def announce(cfg: DictConfig, mode: Lossy) -> None:
    """A line on stderr before the run."""
    given = ", ".join(f"{name}={value}" for name, value in mode.settings().items() if name != "mode")
    cost = (
        "its cost is measured afterwards" if cfg.lossy.report else "its cost is not measured (lossy.report=true does)"
    )
    sys.stderr.write(f"rgpu generate: lossy={mode.name} ({given}): the text is not the model's own; {cost}\n")


def conclude(mode: Lossy, section: dict[str, Any]) -> None:
    """A line on stderr after it."""
    line = f"{section[f'{mode.did}_per_token']} assignments a token {mode.did.replace('_', ' ')}"
    if found := section["report"]:
        words = found["perplexity"]
        line += (
            f"; perplexity {words['lossy']:.2f} beside {words['exact']:.2f}, KL {found['kl_mean']:.4f}, "
            f"{found['speedup']} times the exact run's speed ({found['tokens']} tokens)"
        )
    sys.stderr.write(f"rgpu generate: lossy={mode.name}: {line}\n")


def report(
    cfg: DictConfig, options: dict[str, Any], controller: ControllerFactory, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """Perplexity, KL, loads and speed of the mode beside the exact run, over held-out text; None where nobody asked."""
    if not cfg.lossy.report:
        return None
    with ExitStack() as stack:
        exact, lossy = (
            stack.enter_context(
                OffloadSession.open(
                    cfg.model, controller, **options | {"lossy": mode, "record": False, "telemetry": Telemetry()}
                )
            )
            for mode in (None, options["lossy"])
        )
        longest = getattr(exact.architecture.config.get_text_config(), "max_position_embeddings", None)
        found = compare_on(exact, lossy, texts_of(cfg.lossy, tokenizer, longest))
        return {"text": str(cfg.lossy.text)} | found.section()


def texts_of(chosen: DictConfig, tokenizer: PreTrainedTokenizerBase, longest: int | None) -> list[Text]:
    """The beginning of each file: a prompt and its share of `tokens`, or what there is and the model can read."""
    files, found = _files(chosen), []
    each = -(-chosen.tokens // len(files))
    room = _PROMPT + each if longest is None else min(_PROMPT + each, longest)
    for file in files:
        ids = tokenizer(file.read_text(errors="replace")[: 64 * room], truncation=True, max_length=room)["input_ids"]
        prompt = min(_PROMPT, max(len(ids) - each, len(ids) // 2))
        if len(ids) - prompt < 4 or prompt < 1:
            raise InputError(
                f"lossy.text: got {len(ids)} tokens in {file}; expected at least 8; set lossy.text=assets/heldout"
            )
        found.append(Text(file.stem, torch.tensor(ids, dtype=torch.int64), prompt))
    return found


def _files(chosen: DictConfig) -> list[Path]:
    path = Path(str(chosen.text))
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise InputError(
            f"lossy.text: got {path}; expected a text file or a folder with .txt files; set lossy.text=assets/heldout, or "
            "lossy.report=false"
        )
    return files
