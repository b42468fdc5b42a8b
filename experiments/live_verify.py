"""The checks of a live run: its decisions against a replay, its output against the stock model."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rgpu.experiments.live import Setup
from rgpu.experiments.live_store import Stored
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.fidelity import compare_with
from rgpu.runtime.generation import Generation, compare_with_replay, compare_with_resident
from rgpu.runtime.loading import load_dequantised, load_resident
from rgpu.runtime.session import OffloadSession
from rgpu.traces.trace import Trace


def verified(
    cfg: DictConfig, session: OffloadSession, setup: Setup, made: Stored, text: Generation, pool: PoolConfig, trace: Trace
) -> dict[str, Any]:  # fmt: skip
    """What agrees, and `failed`: the names of what does not.

    Float experts on a CPU must give the stock model's tokens and logits bit for bit. Quantised ones are held against the
    stock model with the numbers that they stand for, and runs on a GPU against the stock model on the CPU, within a tolerance.
    Of a lossy run only the decisions are checked: its output is meant to differ, and its report says how far.
    """
    folder, dtype, pad = Path(cfg.model), made.options["dtype"], int(getattr(session.tokenizer, "pad_token_id", 0) or 0)
    fresh = setup.controller(session.shape, pool)
    result = compare_with_replay(session.controller, trace, pool, fresh, setup.calibration, cfg.seed)
    if "lossy" in made.options:
        pass
    elif made.quantised or cfg.device != "cpu":
        architecture = session.architecture
        reference = (
            load_dequantised(folder, architecture, session.store, dtype)
            if made.quantised
            else load_resident(folder, architecture, dtype)
        )
        result["fidelity"] = compare_with(reference, text, pad).section(dtype)
    else:
        result |= compare_with_resident(folder, session.architecture, dtype, text, pad)
    failed = [name for name, same in result.items() if name.startswith("identical_") and not same]
    if "fidelity" in result and not result["fidelity"]["within_tolerance"]:
        failed.append("fidelity")
    return result | {"failed": failed}
