"""Every command of the tutorial composes: settings that are renamed are renamed there too."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from rgpu.experiments.mistakes import quoted

DOCS = Path(__file__).resolve().parents[3] / "docs"


def commands(page: str) -> list[list[str]]:
    """Words of each `rgpu` line of a page's code blocks, up to a pipe or redirection."""
    code = "\n".join(line[4:] for line in (DOCS / page).read_text().splitlines() if line.startswith("    "))
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    found = [re.sub(r"^(\$ )?\s*", "", line) for line in lines]
    return [shlex.split(re.split(r" \| | >", line)[0]) for line in found if re.match(r"rgpu \w+ ", line)]


@pytest.mark.parametrize("page", ["tutorial_no_gpu.md", "generate.md"])
def test_commands_compose(page: str) -> None:
    lines = commands(page)
    assert lines and any("memory.ram" in word for line in lines for word in line)
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        for _, name, *overrides in lines:
            if name == "generate:":  # an error that is quoted
                continue
            words = [quoted(word.replace("$policy", "lru")) for word in overrides]
            assert compose(name, words)
