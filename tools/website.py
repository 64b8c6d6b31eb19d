"""Make the web site of the book out of executed notebooks: build/html, which opens without a network.

usage: python tools/website.py build/smoke/00_notation.ipynb ...
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
LOADING = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("object", "data")}
POLICY = ("default-src 'none'; script-src 'self' 'unsafe-hashes' {}; style-src 'self' 'unsafe-inline'; "
          "img-src 'self' data:; font-src 'self' data:; form-action 'self'; base-uri 'none'")
PRINT = "window.print()"  # what the theme's print button does, an attribute of it
LOADED_LINKS = {"stylesheet", "preload", "modulepreload", "icon", "shortcut icon", "prefetch", "manifest"}


def main(notebooks: list[str], build: Path = ROOT / "build") -> int:
    """Assemble the sources, run sphinx with warnings as errors, refuse pages that load from elsewhere."""
    assemble([Path(notebook) for notebook in notebooks], build / "site")
    # -a: each page carries the table of contents, so one new title concerns all of them
    command = [sys.executable, "-m", "sphinx", "-q", "-a", "-W", "--keep-going", "-b", "html"]
    command += ["-d", str(build / "doctrees"), str(build / "site"), str(build / "html")]
    done = subprocess.run(command, check=False)
    if done.returncode:
        return done.returncode
    protect(build / "html")
    outside = external_requests(build / "html")
    for line in outside:
        print(f"slimnb: BookError: {line} - the book must open without a network.", file=sys.stderr)
    return 4 if outside else 0


def assemble(notebooks: list[Path], target: Path) -> None:
    """Bring the folder `target` up to date from book/, the notebooks and the example; same content, same file dates."""
    wanted = {Path("_static/mathjax/tex-svg-full.js"): _mathjax().read_bytes()}
    for path in (ROOT / "book").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            wanted[path.relative_to(ROOT / "book")] = path.read_bytes()
    for path in (ROOT / "examples").rglob("*"):  # shown by book/seventh_paper.md
        if path.suffix in (".py", ".toml"):
            wanted[path.relative_to(ROOT)] = path.read_bytes()
    books = {path.stem: nbformat.read(path, as_version=4) for path in notebooks}
    for name, book in books.items():
        wanted[Path(f"{name}.ipynb")] = nbformat.writes(prepared(book)).encode()
    index = wanted[Path("index.md")].decode().replace("{{chapters}}", cards(books))
    wanted[Path("index.md")] = index.encode()
    for path in target.rglob("*"):
        if path.is_file() and path.relative_to(target) not in wanted:
            path.unlink()
    for relative, content in wanted.items():
        path = target / relative
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _mathjax() -> Path:
    # The package's folder has hyphens in its name and cannot be imported; its record of files finds it.
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    return next(Path(f.locate()) for f in files if f.name == "tex-svg-full.js")


def prepared(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook for the site: papermill's cell is hidden, links out of the book become plain text."""
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
        if cell.cell_type == "markdown":
            # Source files are no pages here, and a relative link to one would be broken.
            cell.source = re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", cell.source)
    return book


def cards(books: dict[str, nbformat.NotebookNode]) -> str:
    """A grid with one card per chapter, its title and its question; the table of contents, with the public names."""
    lines = ["## Chapters", "", "::::{grid} 1 1 2 2", ":gutter: 3", ""]
    contents = ["```{toctree}", ":hidden:", ""]
    for name, book in books.items():
        title, question = title_and_question(book)
        lines += [f":::{{grid-item-card}} {name[:2]} · {title}", f":link: {name}", ":link-type: doc", ""]
        lines += [question, ":::", ""]
        contents.append(f"{name[:2]} {title} <{name}>")
    contents.append("Public names <api>")
    return "\n".join([*lines, "::::", "", *contents, "```"])


def title_and_question(book: nbformat.NotebookNode) -> tuple[str, str]:
    """A chapter's first heading and its first blockquote, both on one line."""
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    title = re.search(r"^# +(.+)$", text, re.M)
    quote = re.search(r"(?:^>.*\n?)+", text, re.M)
    question = " ".join(re.sub(r"^> ?", "", quote[0], flags=re.M).split()) if quote else ""
    return title[1].strip() if title else "", question.strip("*")


def protect(folder: Path) -> None:
    """Give each page under `folder` a content security policy: what comes with the book runs and loads, nothing else.

    Of scripts inside a page only the theme's own run, which stand in its head; one in a chapter's output does not.
    """
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        ours = text if path.name == "search.html" else text.partition("<body")[0]
        scripts = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", ours, re.S)
        digests = [hashlib.sha256(script.encode()).digest() for script in (*scripts, PRINT)]
        hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
        meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(hashes)}" />'
        path.write_text(text.replace("<head>", f"<head>\n    {meta}", 1), encoding="utf-8")


class _Loads(HTMLParser):
    """Collects what a page fetches by itself: scripts, styles, images, frames; not links to click."""

    def __init__(self):
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.urls += [given[a] or "" for t, a in LOADING if t == tag and a in given]
        if tag == "link" and (given.get("rel") or "").lower() in LOADED_LINKS:
            self.urls.append(given.get("href") or "")
        self.urls += _css_urls(given.get("style") or "")


def _css_urls(text: str) -> list[str]:
    return re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)


def external_requests(folder: Path) -> list[str]:
    """All `page: address` under `folder` that a browser would fetch from another host on opening a page."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            text = path.read_text(encoding="utf-8")
            loads = _Loads()
            loads.feed(text)
            styles = "".join(re.findall(r"<style.*?</style>", text, re.S))
            urls = loads.urls + _css_urls(styles)
        elif path.suffix == ".css":
            urls = _css_urls(path.read_text(encoding="utf-8"))
        else:
            continue
        found += [f"{path.relative_to(folder)}: {u[:80]}" for u in urls if re.match(r"\s*(https?:)?//", u)]
    return found


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(sys.argv[1:]))
