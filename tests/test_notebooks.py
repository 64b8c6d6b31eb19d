"""The chapters: both halves agree, each keeps the book's anatomy, and each runs to its end at smoke scale."""

import ast
from pathlib import Path

import nbformat
import pytest
from jupytext.compare import compare_notebooks

from slimnb.book.execute import execute, refresh_prose
from slimnb.book.notebook import check_whole, code_hash, declared_by, is_current, read_chapter
from slimnb.book.parameters import COMMON

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
SMOKE = {"scale": "smoke"}


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_every_chapter_is_a_pair_and_every_pair_a_chapter():
    names = {path.stem for path in CHAPTERS}
    assert names, "no chapter in notebooks/"
    assert names == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names == {path.stem for path in (ROOT / "notebooks").glob("*.py")}, "NN_name.py"


@each_chapter
def test_both_halves_of_a_chapter_say_the_same(path):
    text, shown = read_chapter(path), read_chapter(path.with_suffix(".ipynb"))
    # papermill's cell says which parameters the outputs were made with; it is no part of the text.
    shown.cells = [c for c in shown.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    shown.metadata = text.metadata  # kernel and editor settings
    compare_notebooks(shown, text, fmt="py:percent", allow_expected_differences=True, compare_outputs=False)


@each_chapter
def test_the_shown_outputs_are_whole_and_come_from_the_shown_code(path):
    shown = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    check_whole(shown, path.stem)
    assert shown.metadata["slimnb"]["code"] == code_hash(shown) == code_hash(read_chapter(path)), (
        f"outputs are older than the code: python -m slimnb run {path.stem} --publish"
    )


@each_chapter
def test_a_chapter_begins_with_its_question_and_its_parameters(path):
    book = read_chapter(path)
    first = book.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert any(line.startswith("> ") and "?" in line for line in first.source.splitlines()), (
        "a quoted question"
    )
    assert "parameters" in code(book)[0].metadata.get("tags", []), "parameters come first"
    declared = declared_by(book)
    assert set(COMMON) <= set(declared.defaults) and len(declared.defaults) <= 12
    assert declared.check({}) == declared.check(SMOKE), "the defaults are good ones, and smoke"
    assert set(declared.defaults) == set(COMMON) | set(declared.rules), "each has a rule in Chapter.begin"
    assert f'Chapter.begin("{path.stem}", globals()' in code(book)[1].source.replace("\n", "").replace(
        "    ", ""
    )


@each_chapter
def test_a_chapter_keeps_its_cells_short_and_its_imports_together(path):
    book = read_chapter(path)
    for number, cell in enumerate(book.cells, 1):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if cell.cell_type != "code":
            continue
        assert len(lines) <= (23 if cell is code(book)[1] else 20), f"cell {number} has {len(lines)} lines"
        assert not any(line.startswith(("%", "!")) and line != "%matplotlib inline" for line in lines), number
        tree = ast.parse("\n".join(line for line in lines if line != "%matplotlib inline"))
        has_imports = any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree))
        assert not has_imports or cell is code(book)[1], f"cell {number} imports; the set-up cell does that"
    assert code(book)[-1].source.rstrip().endswith("chapter.end()")
    assert code(book)[-1].source.count("\n") <= 2


@pytest.mark.chapter
@each_chapter
def test_a_chapter_runs_at_smoke_scale(path):
    output = ROOT / "build/smoke" / f"{path.stem}.ipynb"
    if is_current(path, output, SMOKE):
        refresh_prose(path, output)
    else:
        execute(path, output, SMOKE)
    book = nbformat.read(output, as_version=4)
    check_whole(book, path.stem)
    assert book.metadata["slimnb"]["parameters"] == SMOKE
