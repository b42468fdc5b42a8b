"""The report: one HTML file that opens without a network; every number comes from rows, checks or the manifest."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rgpu.experiments.figures import style
from rgpu.experiments.plot import INDEX
from rgpu.experiments.report_page import Raw, bullets, page, table
from rgpu.results.derive import MARGIN, complete
from rgpu.results.provenance import portable, write_atomic
from rgpu.results.rows import read
from rgpu.results.statistics import MIN_CLUSTERS

SHARE = 0.25  # the headline's capacity
LIMITS = (
    "Hits, misses, loads and bytes are exact counts on recorded routing. Nothing in these figures is a time on a GPU: "
    "no latency, no stall and no speed-up is claimed by them.",
    "Routing of one model on one set of prompts says little about another. Conclusions hold for the traces named under "
    "each figure and should be repeated on one's own trace.",
    "A pool that loads ahead can show more hits than Belady while moving more bytes. Hits rank only policies that "
    "always admit and load on a miss; for the rest read loads and bytes per token.",
    "Intervals are 95 % percentile cluster bootstraps over sequences. With fewer than "
    f"{MIN_CLUSTERS} sequences they are too narrow, and every verdict is “cannot tell”.",
    "rgpu is an independent implementation of a published description. The underlying method is the subject of a "
    "published patent application (KR 10-2026-0070380); check before commercial use.",
)


def build_report(
    rows_path: str | Path,
    figures_dir: str | Path,
    manifest: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
    out_html: str | Path,
    *,
    limits: Sequence[str] = (),
    title: str = "rgpu: what a pool of expert slots costs and saves",
) -> Path:
    """Write the report atomically and return its path.

    `checks`: dicts of `name`, `passed` (True, False, or None: not run), `detail` and optional `seconds`.
    `figures_dir` is a folder that `rgpu.experiments.plot.render` wrote. `limits`: further lines on limits.
    """
    rows = complete(read(rows_path))
    figures_dir = Path(figures_dir)
    index = json.loads((figures_dir / INDEX).read_text(encoding="utf-8"))
    sections = [
        ("ran", "What was run", _sources(rows) + _checks(checks)),
        ("headline", "Headline", _headline(rows) + _prediction(rows)),
        ("figures", "Figures", _figures(index, figures_dir)),
        ("limits", "Limits", bullets(escape(t) for t in (*LIMITS, *limits))),
        ("provenance", "Provenance", _provenance(manifest)),
    ]
    failed = [str(c["name"]) for c in checks if c.get("passed") is False]
    alarm = f"Failed checks: {', '.join(failed)}. Do not trust the numbers below." if failed else ""
    meta = [str(manifest.get("date", "")), f"commit {manifest.get('commit', 'unknown')}", str(manifest.get("cpu", ""))]
    html = page(title, ", ".join(m for m in meta if m), alarm, sections)
    write_atomic(out_html, html.encode())
    return Path(out_html)


def _sources(whole: pd.DataFrame) -> str:
    rows = []
    for (trace, source), part in whole.groupby(["trace", "source"]):
        tokens = part["trace_tokens"].max()
        what = ", ".join(sorted(part["experiment"].unique())).replace("_", " ")
        rows.append([str(trace), str(source), "" if pd.isna(tokens) else f"{int(tokens):,}", style.label(part), what])
    return table(["trace", "source", "tokens", "what the numbers are", "experiments"], rows, numeric=(2,))


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    marks = {True: '<b class="pass">pass</b>', False: '<b class="fail">FAIL</b>', None: "<b>not run</b>"}
    rows = []
    for check in checks:
        passed = check.get("passed")
        seconds = "" if check.get("seconds") is None else f"{check['seconds']:.1f} s"
        mark = marks[None if passed is None else bool(passed)]
        rows.append([Raw(mark), str(check["name"]), str(portable(check.get("detail", ""))), seconds])
    return "<h3>Checks</h3>" + table(["", "check", "detail", "took"], rows, numeric=(3,)) if rows else ""


def _headline(whole: pd.DataFrame) -> str:
    """Every policy at the capacity nearest a quarter of the experts, one table a trace, scope and reset."""
    try:
        hits = style.select(whole, "capacity_sweep", "hit_rate")
    except style.MissingRows as error:
        return f"<p>No capacity sweep: {escape(str(error))}.</p>"
    out = []
    for (trace, scope, reset), part in hits[hits["domain"].isna()].groupby(["trace", "scope", "reset"], dropna=False):
        share = style.nearest_share(part, SHARE)
        own = whole[(whole["experiment"] == "capacity_sweep") & (whole["trace"] == trace) & whole["sequence"].isna()]
        own = own[own["domain"].isna() & np.isclose(own["capacity_share"].astype(float), share)]
        own = own[(own["scope"] == scope) & (own["reset"] == reset)]
        cells: dict[Any, Any] = {(r.policy, r.metric): r for r in own.itertuples()}
        kinds, rows = style.policy_kinds(own), []
        for policy in style.policy_order(own["policy"].dropna().unique()):
            found = {m: cells.get((policy, m)) for m in _METRICS}
            versus = found["loads_per_token_difference"]
            verdict = str(versus.verdict) if versus is not None and isinstance(versus.verdict, str) else ""
            words = {"higher": "more loads than LRU", "lower": "fewer loads than LRU"}
            rows.append(
                [style.policy_label(policy), kinds[policy]]
                + [_interval(found[m], *_METRICS[m]) for m in _METRICS]
                + [words.get(verdict, verdict)]
            )
        slots = own["slots"].dropna().unique()
        heading = f"{trace}: {100 * share:.0f} % of the experts resident"
        sizes = " or ".join(str(int(s)) for s in sorted(slots))
        where = f"{sizes} slots, scope {scope}, {style.RESETS.get(str(reset), str(reset))}"
        out.append(
            f"<h3>{escape(heading)}</h3><p class=meta>{escape(where)}</p>" + table(_HEAD, rows, numeric=range(2, 7))
        )
    note = (
        "Brackets: 95 % interval over sequences. Differences are against LRU on the same sequences; the verdict is on "
        "loads, after Holm's correction over the policies of one table, and is “cannot tell” unless the interval "
        f"clears {100 * MARGIN:g} % of a token's accesses. Bounds and clairvoyant policies get no verdict."
    )
    return "".join(out) + f"<p class=meta>{note}</p>"


_HEAD = [
    "policy",
    "kind",
    "hit rate",
    "loads per token",
    "MiB per token",
    "hits − LRU (points)",
    "loads − LRU",
    "verdict",
]
_METRICS: dict[str, tuple[float, str]] = {  # metric: (scale, format)
    "hit_rate": (100.0, "{:.1f} %"),
    "loads_per_token": (1.0, "{:.2f}"),
    "bytes_per_token": (1 / 2**20, "{:,.4g}"),
    "hit_rate_difference": (100.0, "{:+.1f}"),
    "loads_per_token_difference": (1.0, "{:+.2f}"),
}


def _prediction(whole: pd.DataFrame) -> str:
    try:
        rows = style.select(whole, "prediction", "recall")
    except style.MissingRows:
        return ""
    rows = rows[rows["layer"].isna() & rows["domain"].isna() & rows["width"].notna()]
    out = []
    for trace, part in rows.groupby("trace"):
        part = part[part["width"] == part["width"].min()]
        nearest = part[((part["case"] == "layer") & (part["horizon"] == 1)) | (part["case"] == "token")]
        cells: dict[Any, Any] = {(r.predictor, r.case): r for r in nearest.itertuples()}
        names = style.policy_order(nearest["predictor"].dropna().unique())
        body = [
            [n.replace("_", " "), *(_interval(cells.get((n, c)), 100.0, "{:.1f} %") for c in ("layer", "token"))]
            for n in names
        ]
        if body:
            head = f"{trace}: predictor recall at width {int(part['width'].min())}"
            out.append(f"<h3>{escape(head)}</h3>")
            out.append(table(["predictor", "next MoE layer", "same layer, next token"], body, numeric=(1, 2)))
    return "".join(out)


def _figures(index: Mapping[str, Any], folder: Path) -> str:
    out, last = [], ""
    for figure in index["figures"]:
        if figure["name"] != last:
            out.append(
                f'<h3 id="{escape(figure["name"])}">{escape(figure["title"])}</h3><p>{escape(figure["guide"])}</p>'
            )
            last = figure["name"]
        data = base64.b64encode((folder / _image(figure["files"])).read_bytes()).decode()
        kind = "svg+xml" if _image(figure["files"]).endswith(".svg") else "png"
        text = f"{figure['title']}, {figure['trace']}"
        picture = f'<img alt="{escape(text)}" src="data:image/{kind};base64,{data}">'
        out.append(
            f"<figure>{picture}<figcaption><b>{escape(figure['trace'])}.</b> "
            f"{escape(figure['caption'])}</figcaption></figure>"
        )
    if index["skipped"]:
        reasons = (f"<b>{escape(s['title'])}</b>: {escape(s['reason'])}" for s in index["skipped"])
        out.append("<h3>Not drawn</h3>" + bullets(reasons))
    return "".join(out)


def _image(files: Sequence[str]) -> str:
    """The svg, where there is one."""
    return next((f for f in files if f.endswith(".svg")), files[0])


def _provenance(manifest: Mapping[str, Any]) -> str:
    facts = portable(dict(manifest))
    config = escape(json.dumps(facts.pop("config", {}), indent=2, sort_keys=True))
    rows = [[k, json.dumps(v) if isinstance(v, dict | list) else str(v)] for k, v in facts.items()]
    return table(["fact", "value"], rows) + f"<details><summary>Configuration</summary><pre>{config}</pre></details>"


def _interval(row: Any, scale: float, form: str) -> str:
    if row is None or pd.isna(row.value):
        return "–"
    text = form.format(row.value * scale)
    bare = form.removesuffix(" %")
    return text if pd.isna(row.lo) else f"{text} [{bare.format(row.lo * scale)}, {bare.format(row.hi * scale)}]"
