"""The claims as one self-contained page: verdict table, then each claim with its numbers and figures."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rgpu.experiments.report_page import Raw, bullets, page, table
from rgpu.results.provenance import write_atomic


def build_page(document: Mapping[str, Any], index: Mapping[str, Any], out: Path) -> Path:
    """Write `report.html` beside the rows and return its path."""
    claims = document["claims"]
    verdicts = table(
        ["", "claim", "source", "verdict", "why"],
        [[c["id"], c["claim"], c["source"], Raw(f"<b>{escape(c['verdict'])}</b>"), c["why"]] for c in claims],
    )
    rows = [[r["id"], r["reported"], r["source"], r["why"]] for r in document["not_testable"]]
    chosen = [f"{escape(name)}: {escape(text)}" for name, text in document["chosen"].items()]
    sections = [
        ("verdicts", "Verdicts", verdicts + bullets(escape(line) for line in document["limits"])),
        ("chosen", "Configuration chosen on the calibration half", bullets(chosen)),
        *((c["id"], f"{c['id']}: {c['claim']}", _claim(c, index, out / "figures")) for c in claims),
        ("reported", "Reported figures that are not testable here", table(["", "reported", "source", "why"], rows)),
    ]
    meta = "Each claim of the Rotary GPU record on recorded routing, every policy at equal bytes. Brackets: 95 % intervals."
    path = out / "report.html"
    write_atomic(path, page("Rotary GPU: the claims, tested", meta, "", sections).encode())
    return path


def _claim(claim: Mapping[str, Any], index: Mapping[str, Any], folder: Path) -> str:
    about = (
        f"<p><b>{escape(claim['verdict'])}</b>. {escape(claim['why'])}.</p>"
        f"<p class=meta>Test: {escape(claim['test'])}. Falsified if: {escape(claim['falsified_if'])}.</p>"
    )
    drawn = [f for f in index["figures"] if f["name"] == f"claim_{claim['id'].lower()}"]
    return about + "".join(_figure(f, folder) for f in drawn) + _numbers(claim["numbers"])


def _figure(figure: Mapping[str, Any], folder: Path) -> str:
    file = next(f for f in figure["files"] if f.endswith(".svg"))
    data = base64.b64encode((folder / file).read_bytes()).decode()
    picture = f'<img alt="{escape(figure["title"])}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{picture}<figcaption><b>{escape(figure['trace'])}.</b> {escape(figure['caption'])}</figcaption></figure>"


def _numbers(numbers: Mapping[str, Any]) -> str:
    rows = [[path, value] for path, value in _flat(numbers)]
    return f"<details><summary>Numbers</summary>{table(['figure', 'value'], rows)}</details>" if rows else ""


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Leaves of nested dicts as (path, text); [estimate, lo, hi] becomes one cell."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _flat(inner, f"{path} / {key}" if path else str(key))]
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, float) for v in value):
        return [(path, f"{value[0]:.4f} [{value[1]:.4f}, {value[2]:.4f}]")]
    return [(path, str(value))]
