"""The tutorial on predictors: its class and yaml are run as they stand, its commands on less text."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from rgpu.experiments import record, replay, train
from rgpu.experiments.mistakes import quoted

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "tutorial_predictor.md").read_text()
LESS = {"record": ["limit=2", "prompt_tokens=6", "max_new_tokens=6"], "train": [], "replay": []}
RUN = {"record": record.run, "train": train.run, "replay": replay.run}


def commands() -> list[tuple[str, list[str]]]:
    """(command, overrides) of every `rgpu` of the page's indented blocks, up to a pipe."""
    code = "\n".join(line[4:] for line in PAGE.splitlines() if line.startswith("    "))
    code = re.sub(r"\\\n\s*", "", code)
    found = [shlex.split(words) for words in re.findall(r"rgpu (\w+ [^|\n]*)\|", code)]
    return [(name, words) for name, *words in found]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return str(found)


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "predictor").mkdir(parents=True)
    (tmp_path / "mine" / "recent.py").write_text(block("python"))
    (tmp_path / "mine" / "predictor" / "recent.yaml").write_text(block("yaml"))
    (tmp_path / "assets").symlink_to(Path("assets").resolve())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    said = {}
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        for name, words in commands():
            overrides = [w for w in words if w not in ("--config-dir", "mine")]
            if "--config-dir" in words:
                overrides.append("hydra.searchpath=[file://mine]")
            chosen = {"$name": ["popularity", "gate_lookahead"], "$predictor": ["mine/recent", "mine/gate_lookahead"]}
            mark = next((m for m in chosen if any(m in w for w in overrides)), "")
            for value in chosen.get(mark, [""]):
                own = [w.replace(mark, value) if mark else w for w in overrides]
                cfg = compose(name, [w if w.startswith("hydra") else quoted(w) for w in own] + LESS[name])
                said[name, value] = RUN[name](cfg)
    assert said["record", ""]["sequences"] == 2
    assert said["train", ""]["predictor"] == "recent" and said["train", ""]["metrics"]["1"]["ceiling"] is not None
    assert Path("mine/recent.safetensors").is_file()
    assert said["replay", "mine/recent"]["prefetch"]["predictor"] == "recent"
    assert said["replay", "mine/gate_lookahead"]["time"]["simulated"]
