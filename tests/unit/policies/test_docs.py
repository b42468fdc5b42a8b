"""The table of policies names every policy, and the cost of a victim that its file has."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROWS = {
    line.split("`")[1]: [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "policies.md").read_text().splitlines()
    if line.startswith("| `")
}


def test_every_policy_has_a_row() -> None:
    assert set(ROWS) == {p.stem for p in (ROOT / "conf" / "policy").glob("*.yaml")} - {"plain"}


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if len(row) == 5])
def test_the_cost_of_a_victim_is_the_one_of_the_file(name: str) -> None:
    source = (ROOT / "rgpu" / "policies" / f"{name}.py").read_text()
    lists, heap = "from rgpu.policies.levels import" in source, "HEAP_ROWS" in source
    expected = "scan or lists" if lists else "scan or heap" if heap else None
    if expected:
        assert ROWS[name][3] == expected
    else:
        assert ROWS[name][3] in ("none", "scan", "O(1)", "O(1) amortised")
