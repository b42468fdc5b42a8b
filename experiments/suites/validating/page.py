"""The validation as one self-contained page: verdict, figure, every configuration, limits."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rgpu.experiments.report_page import Raw, bullets, page, table
from rgpu.results.provenance import write_atomic

HEAD = ("configuration", "hit rate", "measured, ms", "repeats, ms", "spread", "predicted, ms", "error", "decisions")


def build_page(document: Mapping[str, Any], index: Mapping[str, Any], out: Path) -> Path:
    """Write `report.html` into `out` and return its path."""
    wrong = (
        ""
        if document["decisions_identical"]
        else f"Decisions differ from the replay's: {', '.join(document['failed'])}"
    )
    sections = [
        ("verdict", "Verdict", _verdict(document) + _figures(index, out / "figures")),
        ("configurations", "Configurations", table(HEAD, [_line(p) for p in document["points"]], range(1, 7))),
        ("calibration", "Calibrated on", bullets(escape(name) for name in document["calibrated_on"])),
        ("limits", "Limits", bullets(escape(text) for text in document["limits"])),
    ]
    loads = ", ".join(f"{v:g}" for v in document["load_average"])
    meta = f"Measured {document['date'][:10]} on {document['machine']}, CPU only; load average {loads}."
    path = out / "report.html"
    write_atomic(path, page("Simulation against the engine", meta, wrong, sections).encode())
    return path


def sentence(judged: Mapping[str, Any]) -> str:
    """The verdict in one line."""
    return (
        f"Target {judged['verdict']}: median error of TPOT {judged['median_error']:.1%} over {judged['configurations']} "
        f"configurations, at most {judged['target']:.1%} asked for ({judged['target_rests_on']})."
    )


def _verdict(document: Mapping[str, Any]) -> str:
    same = "Hits, loads and victims of every run agree with its replay." if document["decisions_identical"] else ""
    more = (
        f"Largest error {document['largest_error']:.1%}, 90 % of them below {document['p90_error']:.1%}; spread between "
        f"repeats {document['median_spread']:.1%} (median); without simulated misses the median error is "
        f"{document['median_error_without_misses']:.1%}."
    )
    return f"<p><b>{escape(sentence(document))}</b> {escape(same)} {escape(more)}</p>"


def _figures(index: Mapping[str, Any], folder: Path) -> str:
    shown = []
    for figure in index["figures"]:
        file = next(f for f in figure["files"] if f.endswith(".svg"))
        data = base64.b64encode((folder / file).read_bytes()).decode()
        picture = f'<img alt="{escape(figure["title"])}" src="data:image/svg+xml;base64,{data}">'
        shown.append(f"<figure>{picture}<figcaption>{escape(figure['caption'])}</figcaption></figure>")
    return "".join(shown)


def _line(point: Mapping[str, Any]) -> list[str]:
    repeats = [1e3 * s for s in point["repeats_s"]]
    decisions = "identical" if point["identical_decisions"] else Raw("<b class=fail>different</b>")
    return [
        point["name"], f"{point['hits'] / point['accesses']:.1%}", f"{1e3 * point['measured_s']:.2f}",
        f"{min(repeats):.2f} to {max(repeats):.2f}", f"{point['spread']:.1%}", f"{1e3 * point['predicted_s']:.2f}",
        f"{point['error']:+.1%}", decisions,
    ]  # fmt: skip
