"""The exit code of mutation testing."""

from pathlib import Path
from typing import Any

import pytest

from tests.mutation import run
from tests.mutation.mutants import mutants

SOURCE = "def f(a, b):\n    return a < b\n"


class Toy:
    """A bench on which every mutant ends alike."""

    def __init__(self, result: str) -> None:
        self.result = result
        self.base: dict[str, Any] = {"seconds": {"t": 1.0}, "left_out": []}

    def verdict(self, *_: Any) -> tuple[str, str]:
        return self.result, "some test"

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("result", "excused", "code"), [
    ("killed", False, 0), ("survived", False, 1), ("uncovered", False, 1), ("survived", True, 0), ("uncovered", True, 0),
])  # fmt: skip
def test_a_mutant_that_lives_is_a_failure_unless_it_is_known(
    result: str,
    excused: bool,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "policies" / "one.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    known = {("one.py", m.text, m.change): "why" for m in mutants(SOURCE)} if excused else {}
    for name, value in {
        "ROOT": tmp_path, "FOLDER": file.parent, "OUT": tmp_path / "out",
        "equivalents": lambda: known, "Bench": lambda: Toy(result),
    }.items():  # fmt: skip
        monkeypatch.setattr(run, name, value)
    for _ in range(2):  # the second time from the journal
        assert run.main([]) == code
        assert ("alive: policies/one.py" in capfd.readouterr().err) == (code == 1)


def test_annotations_are_left_alone() -> None:
    source = "def f(a):\n    b: int | None = a | 1\n    return b\n"
    assert [m.change for m in mutants(source)] == ["BitOr -> BitAnd", "1 -> 2", "1 -> 0"]
    assert all("b: int | None = " in m.source for m in mutants(source))
