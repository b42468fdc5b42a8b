"""Text corpus of the reference model: fetch packages, extract documents, split by document.

A document is one file of a source. Exact duplicates are dropped, and whether a document is held out follows from a hash
of its text, so the split is stable whatever order files are read in and no held-out document is ever trained on.
"""

import hashlib
import re
import subprocess
import sysconfig
import tarfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rgpu.errors import InputError

HELD_OUT_PERCENT = 4
MIN_CHARS, MAX_CHARS = 400, 200_000
_BLOCK = {"p", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "dt", "dd", "br", "table", "blockquote"}
_SKIP = {"script", "style", "head", "header", "nav", "aside", "footer", "noscript", "button"}


class _Text(HTMLParser):
    """Visible text of a page; `<pre>` keeps its line breaks, everything else is folded."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skip = self.pre = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.skip += tag in _SKIP
        self.pre += tag == "pre"
        if tag in _BLOCK:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.skip = max(0, self.skip - (tag in _SKIP))
        self.pre = max(0, self.pre - (tag == "pre"))
        if tag in _BLOCK:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))


def html_to_text(page: str) -> str:
    """Visible text of one HTML page, blank lines folded."""
    parser = _Text()
    parser.feed(page)
    text = "".join(parser.parts).replace("\xa0", " ")
    text = re.sub(r"[ \t]+\n", "\n", re.sub(r"\n[ \t]+(?=\S)", "\n", text) if "    " not in text else text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def fetch(source: dict[str, Any], work: Path) -> Path:
    """Folder holding the unpacked source; downloads the package with the system's own client when it is absent."""
    if source["fetch"] == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    target = work / source["name"]
    if target.exists():
        return target
    work.mkdir(parents=True, exist_ok=True)
    try:
        if source["fetch"] == "deb":
            subprocess.run(["apt-get", "download", "-qq", source["package"]], cwd=work, check=True, capture_output=True)
            archive = next(work.glob(f"{source['package']}_*.deb"))
            subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True, capture_output=True)
        else:
            done = subprocess.run(
                ["npm", "pack", "--silent", source["package"]], cwd=work, check=True, capture_output=True
            )
            with tarfile.open(work / done.stdout.decode().split()[-1]) as archive_tar:
                archive_tar.extractall(target, filter="data")
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"could not fetch {source['package']}: got {error}; expected a working package client for "
            f"{source['fetch']}; unpack it by hand into {target}"
        ) from None
    return target


def documents(source: dict[str, Any], root: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each usable document of one unpacked source, in path order."""
    for path in sorted(root.glob(source["files"])):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name or "__pycache__" in name or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        text = html_to_text(text) if source["format"] == "html" else text.strip()
        if len(text) >= MIN_CHARS:
            yield name, text[:MAX_CHARS]


def split_of(text: str) -> str:
    """`heldout` for a fixed share of documents chosen by content hash, else `train`."""
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return "heldout" if digest % 100 < HELD_OUT_PERCENT else "train"
