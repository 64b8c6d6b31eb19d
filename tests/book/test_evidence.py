"""Verdicts, figures, the chapters' shown outputs and the README say what the committed records give."""

from __future__ import annotations

import ast
import contextlib
import html
import io
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import jupytext
import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from matplotlib.figure import Figure

from slimnb.book import claims, style
from slimnb.book.chapter import Chapter
from slimnb.train.experiment import NO_TRAINING

mpl.use("Agg")
ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"


@dataclass
class Statements:
    """What the cells of a chapter have said: figures by name as (title, description), verdicts, and their names."""

    figures: dict[str, tuple[str, str]] = field(default_factory=dict)
    verdicts: list[claims.Verdict] = field(default_factory=list)
    names: dict = field(default_factory=dict)


def statements(path: Path, of_records: bool) -> Statements:
    """Run the cells that claims and figures need, in this process, and train, write and lay out nothing."""
    said = Statements()

    def save(chapter, axes, name, alt=""):
        figure = style.figure_of(axes := getattr(axes, "axes", axes))
        if alt or not hasattr(figure, "slimnb_alt"):
            style.described(axes, alt or name)
        said.figures[name] = " ".join(figure.get_suptitle().split()), figure.slimnb_alt
        plt.close(figure)

    def claim(chapter, claim, a, b=None, runs=()):
        said.verdicts.append(claims.judge(claim, a, b, scale=chapter.scale, runs=runs))
        return said.verdicts[-1]

    with (mock.patch.multiple(Chapter, save=save, claim=claim, end=lambda chapter: None),
          mock.patch.object(Figure, "draw_without_rendering", lambda figure: None),
          mock.patch.dict(os.environ, {NO_TRAINING: "1"}), contextlib.redirect_stdout(io.StringIO())):
        for text in needed(path, of_records):
            exec(compile(text, path.name, "exec"), said.names)  # noqa: S102 - our own chapters
            said.names["scale"] = "small"  # the first cell's
    return said


def needed(path: Path, of_records: bool) -> list[str]:
    """The first two cells, those that decide or draw (with `of_records`: from the store), and what these need."""
    cells = [cell.source.replace("%matplotlib", "#") for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    deciding, reads, sets = {"chapter.save", "chapter.claim"}, [], []
    for text in cells:
        nodes = [*ast.walk(ast.parse(text))]
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
        deciding |= {node.name for node in functions if re.search(r"chapter\.(save|claim)\(", ast.unparse(node))}
        reads.append({node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)})
        sets.append({node.name for node in functions} | {
            leaf.id for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store) for leaf in ast.walk(node)
            if isinstance(leaf, ast.Name)})
    kept = {0, 1}
    for at, text in enumerate(cells):
        if any(f"{name}(" in text for name in deciding):
            slice_, names = {at}, set(reads[at])
            for before in reversed(range(at)):
                if sets[before] & names:
                    slice_.add(before)
                    names |= reads[before]
            if not of_records or any("store" in reads[place] for place in slice_ - {0, 1}):
                kept |= slice_
    return [cells[at] for at in sorted(kept)]


@pytest.fixture(scope="module", params=[
    pytest.param((path, of_records), id=f"{path.stem}{' whole' * (not of_records)}",
                 marks=[] if of_records else pytest.mark.sweep) for path in CHAPTERS for of_records in (True, False)])
def chapter(request):
    """A chapter, what its cells say of the committed records, and whether that is all it says."""
    path, of_records = request.param
    return path, statements(path, of_records), not of_records


def drawn(chapter: Path) -> dict[str, tuple[str, str]]:
    """Title and description of each committed figure of a chapter."""
    figures = {}
    for path in (ROOT / "figures" / chapter.stem[:2]).glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        texts = (next(root.iter(DUBLIN_CORE + key)).text for key in ("title", "description"))
        figures[path.stem] = tuple(" ".join(text.split()) for text in texts)
    return figures


def test_figures_are_described_by_what_the_records_give(chapter):
    path, said, whole = chapter
    assert {name: text for name, text in drawn(path).items() if whole or name in said.figures} == said.figures


def test_the_ledger_and_the_shown_chapter_hold_what_the_records_give(chapter):
    path, said, whole = chapter
    ledger = claims.ledger_frame(ROOT / "data/claims.csv")
    ids = {verdict.claim.id: verdict for verdict in said.verdicts}
    rows = ledger[ledger["chapter"].eq(path.stem) if whole else ledger["claim"].isin(ids)]
    ours = pd.DataFrame([ids[id].row() for id in sorted(ids)], columns=rows.columns)
    settled = claims.SETTLED  # by all claims of the ledger: the next test
    assert csv_of(rows.drop(columns=settled)) == csv_of(ours.drop(columns=settled))
    text = shown(path)
    for row in rows.to_dict("records"):
        verdict = replace(ids[row["claim"]], **{name: row[name] for name in settled})
        assert verdict.headline in text, row["claim"]


def csv_of(frame: pd.DataFrame) -> str:
    """The ledger's text of these rows."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def test_the_ledger_is_settled():
    ledger = claims.ledger_frame(path := ROOT / "data/claims.csv")
    settled = pd.DataFrame(claims.settle(ledger.to_dict("records")), columns=ledger.columns)
    pd.testing.assert_frame_equal(ledger, settled, rtol=1e-5, check_dtype=False)  # six digits of p are stored
    assert csv_of(ledger) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_shown_chapter_has_the_ledgers_verdicts_and_the_figures_descriptions(path):
    text, ledger = shown(path), claims.ledger_frame(ROOT / "data/claims.csv")
    for row in ledger[ledger["chapter"] == path.stem].to_dict("records"):
        assert f"{row['verdict']} at {row['scale']}" in text, row["claim"]
    for name, (_, alt) in drawn(path).items():
        assert alt in text, name


def shown(path: Path) -> str:
    """All text that the published chapter's outputs hold, in one line."""
    outputs = [output for cell in nbformat.read(path.with_suffix(".ipynb"), 4).cells if cell.cell_type == "code"
               for output in cell.outputs]
    texts = (out.get("text") or "".join(out.data.get("text/html") or out.data["text/plain"]) for out in outputs)
    return " ".join(html.unescape("\n".join(texts)).split())


def test_chapter_06_quotes_the_benchmark_of_grouping():
    readings = json.loads((ROOT / "data/benchmarks-dynamic.json").read_text(encoding="utf-8"))["readings"]
    value = {reading["what"].partition(" x64, ")[2]: f"{reading['value']:.2f}".lstrip("0") for reading in readings}
    two, many = ([value[f"{paths}: grouped / {rival}"] for rival in ("masks at full width", "the widest path")]
                 for paths in ("half slimmest, half widest", "all paths alike"))
    prose = " ".join((ROOT / "notebooks/06_ds_net.py").read_text(encoding="utf-8").replace("\n# ", " ").split())
    assert f"has grouping at {two[0]} of the time of masks and {two[1]} of the widest path's for 64 images on" in prose
    assert f"and at {many[0]} and {many[1]} for 64 images on 14 paths" in prose
