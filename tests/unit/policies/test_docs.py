"""The table of policies names every policy, and the cost of a victim that its file has."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FIRST = ("name source state victim wins when", "name what ")  # columns of the tables that say what a policy is


def rows_by_heading() -> dict[str, dict[str, dict[str, str]]]:
    """{columns: {policy: {column: cell}}} of every table of the page whose rows begin with a policy's name."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    head: list[str] = []
    for line in (ROOT / "docs" / "policies.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found.setdefault(" ".join(head), {})[cells[0].strip("`")] = dict(zip(head, cells, strict=True))
        elif line.startswith("| "):
            head = cells
    return found


TABLES = rows_by_heading()
VICTIMS = {name: row["victim"] for rows in TABLES.values() for name, row in rows.items() if "victim" in row}


def test_every_policy_has_a_row() -> None:
    named = {name for columns, rows in TABLES.items() if columns in FIRST for name in rows}
    assert named == {p.stem for p in (ROOT / "conf" / "policy").glob("*.yaml")} - {"plain"}


@pytest.mark.parametrize("name", VICTIMS)
def test_the_cost_of_a_victim_is_the_one_of_the_file(name: str) -> None:
    source = (ROOT / "rgpu" / "policies" / f"{name}.py").read_text()
    lists, heap = "from rgpu.policies.levels import" in source, "HEAP_ROWS" in source
    expected = "scan or lists" if lists else "scan or heap" if heap else None
    if expected:
        assert VICTIMS[name] == expected
    else:
        assert VICTIMS[name] in ("none", "scan", "O(1)", "O(1) amortised")
