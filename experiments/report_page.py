"""HTML of the report: its style sheet, tables and lists. Everything is escaped unless it is `Raw`."""

from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root {
  color-scheme: light dark; --ink: #1f2430; --soft: #5b6270; --line: #d9dde3;
  --page: #fbfbfa; --card: #fff; --link: #0b62c4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e7ec; --soft: #a0a8b5; --line: #363c47;
    --page: #16191f; --card: #1d2129; --link: #7db7f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 84rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2rem 0 .3rem; }
p, li { max-width: 46rem; }
.meta, figcaption { color: var(--soft); font-size: .88rem; }
nav a { color: var(--link); text-decoration: none; margin-right: 1.1rem; }
nav a:hover { text-decoration: underline; }
.scroll {
  overflow-x: auto; margin: .75rem 0 1.25rem; border: 1px solid var(--line);
  border-radius: 6px; background: var(--card);
}
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td:last-child { min-width: 8rem; }
.n { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0 2rem; max-width: 64rem; }
figure img {
  display: block; width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; padding: .5rem;
}
figcaption { margin-top: .4rem; }
.pass { color: #1b8a5a; }
.fail { color: #d62f2f; }
.alarm { border-left: 4px solid #d62f2f; padding: .5rem .9rem; background: var(--card); font-weight: 600; }
pre {
  overflow-x: auto; font-size: .8rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .75rem;
}
@media print { nav { display: none; } figure { break-inside: avoid; } }
"""


class Raw(str):
    """Text that is HTML already."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """A table that scrolls sideways on its own; columns in `numeric` are set right."""
    right = set(numeric)
    mark = {i: ' class="n"' if i in right else "" for i in range(len(head))}
    top = "".join(f"<th{mark[i]}>{escape(h)}</th>" for i, h in enumerate(head))
    lines = []
    for row in rows:
        cells = (f"<td{mark[i]}>{c if isinstance(c, Raw) else escape(str(c))}</td>" for i, c in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def bullets(items: Iterable[str]) -> str:
    """A list of items that are HTML already."""
    return "<ul>" + "".join(f"<li>{i}</li>" for i in items) + "</ul>"


def page(title: str, meta: str, alarm: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole document; sections are (anchor, heading, html)."""
    links = "".join(f'<a href="#{name}">{escape(head)}</a>' for name, head, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(head)}</h2>{text}</section>' for name, head, text in sections)
    warning = f'<p class="alarm">{escape(alarm)}</p>' if alarm else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main><header><h1>{escape(title)}</h1>"
        f'<p class="meta">{escape(meta)}</p><nav>{links}</nav>{warning}</header>{body}</main></body></html>\n'
    )
