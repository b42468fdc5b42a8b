"""The field's figures as one self-contained page: statuses, then each figure with what it is held against."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rgpu.experiments.report_page import Raw, bullets, page, table
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.results.provenance import portable, write_atomic

HOW = (
    "Reproduced: every shape the publication reports is there on each recorded trace, and its numbers within the stated "
    "tolerance on at least one. Shape only: the shapes are there, the numbers are not, or cannot be compared. Not reproduced: "
    "a shape does not hold. Not testable: something is missing. The code decides, from the rows of this run.",
    "Published values are red open markers; they come from other models, text and machines.",
    "Times are simulated on a virtual clock from profiles in conf/hardware; nothing here ran on those machines.",
)


def build_page(
    result: Mapping[str, Any],
    index: Mapping[str, Any],
    subjects: Sequence[Subject],
    facts: Mapping[str, Any],
    out: Path,
    title: str = "Figures of the field, recomputed",
    how: Sequence[str] = HOW,
) -> Path:
    """Write `report.html` beside the rows and return its path."""
    sections = [
        ("statuses", "Statuses", _statuses(result["figures"]) + bullets(escape(line) for line in how)),
        ("traces", "Traces", _traces(subjects, result)),
        *((f["id"], f["title"], _figure(f, index, out / "figures")) for f in result["figures"]),
        ("provenance", "Provenance", _provenance(facts)),
    ]
    meta = f"{facts['date']}, commit {facts['commit']}, {facts['cpu']}, {result['seconds']} s"
    path = out / "report.html"
    write_atomic(path, page(title, meta, "", sections).encode())
    return path


def _statuses(figures: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            Raw(f'<a href="#{escape(f["id"])}">{escape(f["title"])}</a>'),
            f["paper"],
            Raw(f"<b>{escape(f['status'])}</b>"),
            "; ".join(f"{t}: {s}" for t, s in f["by_trace"].items()),
        ]
        for f in figures
    ]
    return table(["figure", "paper", "status", "by trace"], rows)


def _traces(subjects: Sequence[Subject], result: Mapping[str, Any]) -> str:
    rows = [[s.name, s.source, f"{s.scored.tokens:,}", f"{s.scored.sequences}"] for s in subjects]
    text = table(["trace", "source", "scored tokens", "scored sequences"], rows, numeric=(2, 3))
    for name, found in result["synthetic"].items():
        fitted = {k: v for k, v in found.items() if k != "source"}
        lines = [[k, f"{v['target']:.4f}", f"{v['reached']:.4f}"] for k, v in fitted.items()]
        text += f"<h3>{escape(name)}: calibrated synthetic</h3><p class=meta>Targets: {escape(found['source'])}.</p>"
        text += table(["", "target", "reached"], lines, numeric=(1, 2))
    return text + (bullets(escape(line) for line in result["limits"]) if result["limits"] else "")


def _figure(figure: Mapping[str, Any], index: Mapping[str, Any], folder: Path) -> str:
    about = (
        f"<p><b>{escape(figure['status'])}</b>. {escape(figure['paper'])}.</p>"
        f"<p class=meta>The same: {escape(figure['same'])}.</p><p class=meta>Differs: {escape(figure['differs'])}.</p>"
    )
    files = {Path(f).name for f in figure["files"]}
    drawn = [f for f in index["figures"] if files & set(f["files"])]
    guide = f"<p>{escape(drawn[0]['guide'])}</p>" if drawn else ""
    return (
        about
        + guide
        + "".join(_picture(f, folder) for f in drawn)
        + "".join(_criteria(trace, entry) for trace, entry in figure["numbers"].items())
        + "".join(_table(made) for made in figure.get("tables", []))
    )


def _table(made: Mapping[str, Any]) -> str:
    head = f"<h3>{escape(made['title'])}</h3>"
    return head + table(made["head"], made["rows"], numeric=range(1, len(made["head"])))


def _picture(figure: Mapping[str, Any], folder: Path) -> str:
    file = next(f for f in figure["files"] if f.endswith(".svg"))
    data = base64.b64encode((folder / file).read_bytes()).decode()
    text = f"{figure['title']}, {figure['trace']}"
    picture = f'<img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}">'
    caption = f"<b>{escape(figure['trace'])}.</b> {escape(figure['caption'])}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _criteria(trace: str, entry: Mapping[str, Any]) -> str:
    made = ", calibrated synthetic" if entry["calibrated synthetic"] else ""
    head = f"<h3>{escape(trace)}{made}: {escape(entry['status'])}</h3>"
    if "why" in entry:
        return head + f"<p>{escape(entry['why'])}</p>"
    if "lacks" in entry:
        head += f"<p>{escape(entry['lacks'])}</p>"
    marks = {True: '<b class="pass">yes</b>', False: '<b class="fail">no</b>'}
    rows = [
        [Raw(marks[bool(c["holds"])]), c["kind"], c["text"], _text(c["measured"]), _text(c["published"])]
        for c in entry["criteria"]
    ]
    return head + table(["holds", "kind", "asked", "measured", "published"], rows)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=float)[:400]


def _provenance(facts: Mapping[str, Any]) -> str:
    known = portable(dict(facts))
    config = escape(json.dumps(known.pop("config", {}), indent=2, sort_keys=True))
    rows = [[k, json.dumps(v) if isinstance(v, dict | list) else str(v)] for k, v in known.items()]
    return table(["fact", "value"], rows) + f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
