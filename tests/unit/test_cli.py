"""The command line contract: help, one line and exit 2 for a user's mistake, one JSON document as the last line."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from rgpu import __version__, cli
from rgpu.errors import InputError
from rgpu.experiments.command import Command, to_plain
from rgpu.experiments.mistakes import nearest, quoted

Body = Callable[[DictConfig], dict[str, Any]]
Result = tuple[int, str, str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `body` as the command `replay` (its real config) with arguments; gives exit code, stdout, stderr."""

    def run(*arguments: str, body: Body = lambda cfg: {"slots": cfg.pool.slots}) -> Result:
        monkeypatch.setattr(sys, "argv", ["rgpu replay", *arguments])
        code = 0
        try:
            Command("replay", body).main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def raising(error: BaseException) -> Body:
    def body(cfg: DictConfig) -> dict[str, Any]:
        raise error

    return body


def cli_with(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rgpu.cli", *arguments], capture_output=True, text=True)


def test_help_lists_the_commands() -> None:
    result = cli_with("--help")
    assert result.returncode == 0
    assert all(f"\n  {name} " in result.stdout for name in cli.available())


def test_unknown_command_names_the_nearest() -> None:
    result = cli_with("repaly")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "rgpu: no command 'repaly'; did you mean replay?\n"


def test_a_bare_first_word_says_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    module = SimpleNamespace(run=SimpleNamespace(main=lambda: seen.extend(sys.argv)))
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    for words in (["kernels", "rows=[1]"], ["what=kernels", "rows=[1]"]):
        seen.clear()
        monkeypatch.setattr(sys, "argv", ["rgpu", "bench", *words])
        cli.main()
        assert seen == ["rgpu bench", "what=kernels", "rows=[1]"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["compare", "my_policy.py", "seed=1"], ["policy.file=my_policy.py", "seed=1"]),
        (["compare", "policy.file=my_policy.py"], ["policy.file=my_policy.py"]),
        (["audit", "run/log.jsonl"], ["log=run/log.jsonl"]),
        (["audit", "log=log.safetensors"], ["log=log.safetensors"]),
        (["audit", "--help"], ["--help"]),
    ],
)
def test_a_bare_first_file_is_the_commands_subject(
    words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    module = SimpleNamespace(run=SimpleNamespace(main=lambda: seen.extend(sys.argv)))
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(sys, "argv", ["rgpu", *words])
    cli.main()
    assert seen == [f"rgpu {words[0]}", *expected]


def test_an_unknown_word_is_one_line() -> None:
    result = cli_with("bench", "kernel")
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr == "rgpu bench: got 'kernel'; expected one of: kernels, link, engine; then key=value settings\n"
    )


def test_version() -> None:
    assert cli_with("--version").stdout == f"rgpu {__version__}\n"


def test_command_help_shows_groups_choices_and_settings() -> None:
    result = cli_with("replay", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("rgpu replay: ")
    assert "policy: " in result.stdout and "belady_bypass" in result.stdout
    assert "scope: layer" in result.stdout


def test_module_runs_as_a_script_and_a_mistake_leaves_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rgpu.experiments.replay", f"trace.path={tmp_path}/none.safetensors"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("rgpu replay: ") and result.stderr.count("\n") == 1


def test_last_line_is_one_json_document(run: Callable[..., Result]) -> None:
    code, out, err = run("pool.slots=5", body=lambda cfg: {"slots": np.int64(cfg.pool.slots), "none": float("nan")})
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1]) == {"slots": 5, "none": None}


def test_several_runs_print_a_document_each(run: Callable[..., Result], tmp_path: Path) -> None:
    code, out, _ = run("-m", "pool.slots=2,4", f"hydra.sweep.dir={tmp_path}")
    assert code == 0
    assert [json.loads(line)["slots"] for line in out.splitlines()] == [2, 4]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("policy=lruu", "no policy=lruu; did you mean lru?"),
        ("pool.slot=8", "unknown key pool.slot; did you mean pool.slots?"),
        ("slots=8", "unknown key slots; did you mean pool.slots?"),
        ("polcy=lru", "unknown key polcy; did you mean policy?"),
        ("policy.foo=1", "unknown key policy.foo; "),
        ("+policy.foo=1", "unknown key policy.foo; "),
        ("seed=abc", "seed: got 'abc', expected an integer; give e.g. seed=0"),
        ("pool.staging=1.5", "pool.staging: got 1.5, expected an integer; give e.g. pool.staging=1"),
        ("trace.path=???", "no value for trace.path; give trace.path=..."),
        ("policy=lru,lfu", "'policy=lru,lfu' holds a comma: "),
        ("lru", "cannot read 'lru' "),
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("policy._target_=rgpu.nothing.Lru", "policy._target_ cannot be imported: "),
    ],
)
def test_config_mistake_is_one_line(run: Callable[..., Result], argument: str, expected: str) -> None:
    from hydra.utils import instantiate

    code, out, err = run(argument, body=lambda cfg: {"policy": str(instantiate(cfg.policy))})
    assert (code, out) == (2, "")
    assert err.startswith(f"rgpu replay: {expected}") and err.count("\n") == 1


def test_a_users_own_folder_of_choices(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.yaml").write_text("_target_: mine.Policy\nwidth: 3\n")
    own = ("--config-dir", str(tmp_path), "policy=mine")
    assert json.loads(run(*own, body=lambda cfg: {"width": cfg.policy.width})[1]) == {"width": 3}
    assert "did you mean policy.width?" in run(*own, "policy.widht=4")[2]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("got 3,\n expected 4"), 2, "got 3, expected 4"),
        (OSError(errno.ENOSPC, "No space left on device", "/full/x"), 2, "no space left on device: /full/x; "),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "[Errno 13] Permission denied: '/root/x'; "),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to continue"),
    ],
)
def test_foreseen_ends_are_one_line(run: Callable[..., Result], error: BaseException, code: int, line: str) -> None:
    got, out, err = run(body=raising(error))
    assert (got, out) == (code, "")
    assert err.startswith(f"rgpu replay: {line}") and err.count("\n") == 1


def test_a_defect_keeps_its_traceback(run: Callable[..., Result]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(body=raising(ZeroDivisionError("a defect")))


@pytest.mark.parametrize("text", ["Hello, world", 'it\'s a "b" c\\', 'x \\" y', "two\nlines", "${a} {b}: c"])
def test_a_text_with_blanks_needs_no_second_quotes(run: Callable[..., Result], text: str) -> None:
    code, out, _ = run(f"trace.path={text}", body=lambda cfg: {"text": cfg.trace.path})
    assert code == 0
    assert json.loads(out) == {"text": text}


@pytest.mark.parametrize("line", ["pool.slots=8", "grid.slots=[1, 2]", "x='a b'", "--info", "~policy", "a={b: 1}"])
def test_other_arguments_stay_as_they_are(line: str) -> None:
    assert quoted(line) == line


def test_nearest_lists_the_choices_when_none_is_close() -> None:
    assert nearest("lruu", ["lru", "fifo"]) == "did you mean lru?"
    assert nearest("zzz", ["lru", "fifo"]) == "expected one of: fifo, lru"


def test_to_plain_leaves_only_what_json_has() -> None:
    value = {1: (np.float32(0.5), np.arange(2), Path("a/b")), "inf": float("inf"), "cfg": DictConfig({"x": None})}
    assert to_plain(value) == {"1": [0.5, [0, 1], "a/b"], "inf": None, "cfg": {"x": None}}
