"""Single files of quantisers that rgpu's environment cannot import whole, from `.venv/oracles` where `make` put them."""

import importlib
import importlib.util
import logging
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / ".venv" / "oracles"


def autoawq_packing() -> Any:
    """AutoAWQ's `packing_utils`, which needs nothing but torch; skips the test where it is not installed."""
    path = FOLDER / "awq" / "utils" / "packing_utils.py"
    if not path.exists():
        pytest.skip("no autoawq in .venv/oracles")
    spec = importlib.util.spec_from_file_location("autoawq_packing_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gptqmodel_dequantiser() -> Any:
    """GPTQModel's `utils.model_dequant`; skips the test where it is not installed."""
    if not (FOLDER / "gptqmodel").exists():
        pytest.skip("no gptqmodel in .venv/oracles")
    return _gptqmodel_dequantiser()


@cache
def _gptqmodel_dequantiser() -> Any:
    """With empty stand-ins for its parents and for the two helpers (a logger, a flag) that pull in the whole package. They
    are gone afterwards: others ask whether a package of that name is there."""
    for parent in ("gptqmodel", "gptqmodel.utils", "gptqmodel.quantization"):
        package = types.ModuleType(parent)
        package.__path__ = [str(FOLDER.joinpath(*parent.split(".")))]
        sys.modules[parent] = package
    stand_ins: dict[str, Any] = {"logger.setup_logger": logging.getLogger, "torch.HAS_NPU": False}
    for helper, content in stand_ins.items():
        module, _, name = helper.partition(".")
        stand_in = types.ModuleType(f"gptqmodel.utils.{module}")
        setattr(stand_in, name, content)
        sys.modules[stand_in.__name__] = stand_in
    try:
        return importlib.import_module("gptqmodel.utils.model_dequant")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "gptqmodel"]:
            del sys.modules[name]
