"""A chapter as a file: reading it, its declared parameters, and whether its execution is whole and up to date."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from slimnb import errors
from slimnb.book.chapter import END
from slimnb.book.parameters import Declaration, declaration
from slimnb.errors import BookError, SlimnbError
from slimnb.runs.definitions import Reader, mentioned

PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = re.compile(r"slimnb\.papers\.\w+(\.\w+)*\.recipes:")
CLAIMED = re.compile(r'claims_of\("(\w+)"\)')
PRINTERS = ("source", "getsource")  # functions by which a chapter prints a definition as its file has it
PROGRESS = re.compile(r"(.+?): step \d+/\d+\b")  # as slimnb.train.loop prints it
SEE = "Run that cell in JupyterLab, or read the .failed.ipynb."
KEPT = "The last output is kept."


def read_chapter(path: str | Path) -> NotebookNode:
    """Return the notebook at `path` (.py in percent format, or .ipynb), with cell ids that follow from its content.

    Raises BookError for a missing file, merge markers, or text that is no notebook.
    """
    path = Path(path)
    if path.suffix not in (".py", ".ipynb") or not os.path.isfile(path):
        raise BookError(
            f"{path.name[:60]}", "is no .py or .ipynb file", "Give e.g. notebooks/00_notation.py."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # without the mark that some editors put at a file's beginning
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BookError(f"{path.name[:60]}, line {line}", "is not UTF-8", "Save the file as UTF-8.") from None
    marker = re.search(r"^(<{7}|>{7}) ", text, re.M)
    if marker:
        line = text.count("\n", 0, marker.start()) + 1
        raise BookError(
            f"{path.name}, line {line}", "an unresolved merge conflict", "Resolve it first."
        )
    if path.suffix == ".py":
        import jupytext

        book = jupytext.reads(text, fmt="py:percent")
    else:
        try:
            book = nbformat.reads(text, as_version=4)
        except Exception as error:  # nbformat raises half a dozen types for bad JSON and bad versions
            why = f"is no notebook of format 4 ({str(error).splitlines()[0][:60]})"
            raise BookError(path.name, why, "Make it anew from its .py half.") from None
    return _named(book)


def _named(book: NotebookNode) -> NotebookNode:
    # jupytext draws fresh random ids on each reading, which would change a committed file for nothing.
    counts: dict[str, int] = {}
    for cell in book.cells:
        counts[cell.source] = counts.get(cell.source, -1) + 1
        cell.id = hashlib.sha256(f"{counts[cell.source]}{cell.source}".encode()).hexdigest()[:12]
    book.nbformat, book.nbformat_minor = 4, 5
    return book


def declared_by(book: NotebookNode) -> Declaration:
    """Return the parameters that the notebook declares, without running it. Raises BookError if it has no such cell."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise BookError(
            f"{len(tagged)} cells tagged 'parameters'", "a chapter has one", "Tag that cell."
        )
    return declaration(tagged[0].source, _python(book))


def _python(book: NotebookNode) -> str:
    """The code cells as one script, without IPython's own commands."""
    cells = [cell.source for cell in book.cells if cell.cell_type == "code" and not _injected(cell)]
    lines = "\n".join(cell for cell in cells if not cell.lstrip().startswith("%%"))
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", lines, flags=re.M)


def content_key(notebook: str | Path, parameters: Mapping[str, Any] | None = None) -> str:
    """Hash what decides a chapter's outputs: its code cells, what they reach, parameters, Python and torch.

    The statements of every definition that the code reaches count, with those that run and clean a chapter, and the
    claims of its papers. Prose does not count, nor do the library's comments and docstrings, unless the chapter prints
    them, nor the words of errors.
    Nets and papers that a recipe names by a text count whole. Torch is not imported.
    """
    book, reader = read_chapter(notebook), Reader({"slimnb": PACKAGE})
    code = _python(book)
    texts = reader.reached([*mentioned(code), "slimnb.book.execute.execute", *_modules("nets")], strict=False)
    papers = {name.split(".")[2] for name in texts if RECIPES.match(name)}
    texts = reader.reached([name for paper in papers for name in _modules(f"papers/{paper}")])
    parts = [code_hash(book), dict(parameters or {}), sys.version, importlib.metadata.version("torch"),
             sorted({f"{name.partition(':')[2]}={text}" for name, text in texts.items()}),
             [reader.source(name) for name in mentioned(code, PRINTERS)],
             [path.read_text("utf-8") for path in sorted(PACKAGE.glob("papers/*/claims.toml"))
              if path.parent.name in CLAIMED.findall(code)]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _modules(folder: str) -> list[str]:
    paths = (PACKAGE / folder).rglob("*.py")
    return sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths
                  if path.name != "__init__.py")


def is_current(notebook: str | Path, output: str | Path, parameters: Mapping[str, Any] | None = None) -> bool:
    """Return whether `output` is a whole execution of `notebook` with its code and the library's as they are now."""
    try:
        book = nbformat.read(output, as_version=4)
        check_whole(book, Path(output).name)
    except (OSError, SlimnbError, ValueError, nbformat.ValidationError):
        return False
    return book.metadata.get("slimnb", {}).get("key") == content_key(notebook, parameters)


def code_hash(book: NotebookNode) -> str:
    """Hash the notebook's code cells except the injected one; outputs with another hash are stale."""
    cells = [c.source for c in book.cells if c.cell_type == "code" and not _injected(c)]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:32]


def with_prose(ran: NotebookNode, book: NotebookNode) -> NotebookNode:
    """Return the executed notebook `ran` with the Markdown cells of `book`, which has the same code cells."""
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    ran.cells = []
    for cell in book.cells:
        ran.cells.append(code.pop(0) if cell.cell_type == "code" else _plain(cell))
        while code and _injected(code[0]):
            ran.cells.append(code.pop(0))
    return _named(ran)


def check_whole(book: NotebookNode, name: str) -> None:
    """Raise BookError unless every code cell ran, in order, without an error, up to `chapter.end()`."""
    cells = [(i, c) for i, c in enumerate(book.cells) if c.cell_type == "code" and c.source.strip()]
    for count, (index, cell) in enumerate(cells, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                raise _cell_error(name, index, output.ename, output.evalue)
        if cell.execution_count != count:
            raise BookError(
                f"{name[:60]}, cell {index + 1}",
                "never ran: its kernel died or was stopped",
                "Look at the cell before it (memory?), then run again.",
                KEPT,
            )
    marks = [output.get("metadata", {}) for output in cells[-1][1].outputs] if cells else []
    if not any(END in mark for mark in marks):
        raise BookError(
            name[:60],
            "did not reach chapter.end() in its last cell",
            "End the chapter with it, and let no cell leave early.",
            KEPT,
        )


def _cell_error(name: str, index: int, ename: str, evalue: str) -> SlimnbError:
    kind = vars(errors).get(ename)
    if isinstance(kind, type) and issubclass(kind, SlimnbError) and evalue.startswith(f"slimnb: {ename}: "):
        error = kind(evalue, "", "")
        error.args = (evalue,)  # the line as the kernel's error said it
        return error
    why = f"{ename}: {' '.join(evalue.split())[:90]}"
    return BookError(f"{name[:60]}, cell {index + 1}", why, SEE, KEPT)


def heading(cell: NotebookNode) -> str:
    """Return the first title of level 1 or 2 in a Markdown cell, else ""."""
    match = re.search(r"^##? +(.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
    return match[1].strip() if match else ""


def _injected(cell: NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def cleaned(book: NotebookNode, root: Path) -> NotebookNode:
    """Remove clock readings, this machine's paths and all but the last line of progress, for a commit."""
    book.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        language_info=book.metadata.get("language_info", {"name": "python"}),
    )
    for cell in book.cells:
        _plain(cell)
        if "outputs" in cell:
            cell.outputs = [_thinned(_without_paths(output, root)) for output in cell.outputs]
    return _named(book)


def _plain(cell: NotebookNode) -> NotebookNode:
    cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in ("tags", "mystnb") and v})
    cell.source = cell.source.rstrip("\n")
    return cell


def _without_paths(item: Any, root: Path) -> Any:
    if isinstance(item, str):
        home = os.path.expanduser("~").rstrip("/")
        text = item.replace(f"{root}{os.sep}", "")
        return text.replace(f"{home}/", "~/") if home.startswith("/") else text
    if isinstance(item, dict):
        return NotebookNode({k: v if k == "image/png" else _without_paths(v, root) for k, v in item.items()})
    return [_without_paths(part, root) for part in item] if isinstance(item, list) else item


def _thinned(output: NotebookNode) -> NotebookNode:
    # Twenty lines of progress per training run tell a reader of the finished page no more than the last one.
    if output.output_type == "stream":
        lines = output.text.splitlines(keepends=True)
        labels = [match[1] if (match := PROGRESS.match(line)) else None for line in lines]
        pairs = zip(lines, labels, [*labels[1:], None], strict=True)
        output.text = "".join(line for line, label, after in pairs if label is None or label != after)
    return output
