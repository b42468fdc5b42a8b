"""The packaging that keeps `kernels/` at the top level without shadowing Hugging Face's package of that name."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("kernels", "predictors", "experiments", "conf")
FOLDERS = {"rgpu", *LINKED, "tests", "assets", "benchmarks", "docs"}
FILES = {"pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "THIRD_PARTY.md"}


@pytest.mark.parametrize("name", LINKED)
def test_link_is_relative_and_resolves(name: str) -> None:
    link = ROOT / "rgpu" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", ("kernels", "predictors", "experiments"))
def test_no_init_makes_a_linked_folder_importable_by_its_bare_name(name: str) -> None:
    assert list((ROOT / name).rglob("__init__.py")) == []


def test_conf_is_a_package_for_hydra() -> None:
    assert (ROOT / "conf" / "__init__.py").is_file()
    assert Path(str(importlib.import_module("rgpu.conf").__file__)).samefile(ROOT / "conf" / "__init__.py")


def test_every_package_of_rgpu_says_what_it_is() -> None:
    folders = {p.parent for p in (ROOT / "rgpu").rglob("*.py") if not any(q.is_symlink() for q in p.parents)}
    without = [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file()]
    assert without == []


def test_top_level_holds_what_it_should() -> None:
    present = {p.name for p in ROOT.iterdir()}
    assert (FOLDERS | FILES) - present == set()
    assert {p.name for p in ROOT.glob("*.py")} == set()  # nothing importable beside the folders


def test_transformers_loads_models_with_the_repository_first_on_the_path() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import transformers.modeling_utils"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
