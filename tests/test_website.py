"""The web site: built without a warning from executed notebooks, and opened without a network."""

import base64
import hashlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

import slimnb
from slimnb.book.notebook import END, content_key

ROOT = Path(__file__).resolve().parents[1]


PLANTED = "document.title = 'a chapter ran this'"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def website():
    return tool("website")


def notebook(title="A chapter", question="Does it build?"):
    v4 = nbformat.v4
    stream = v4.new_output("stream", text="57 <b>bold</b>\n")
    script = v4.new_output("display_data", data={"text/html": f"<b>shown</b><script>{PLANTED}</script>"})
    return v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            v4.new_markdown_cell(f"# {title}\n\n> *{question}*\n\nSee [code](../slimnb/errors.py), $x^2$."),
            v4.new_code_cell("a = 57", metadata={"tags": ["parameters"]}, execution_count=1),
            v4.new_code_cell("# Parameters\na = 58", metadata={"tags": ["injected-parameters"]}),
            v4.new_code_cell("print(a)", outputs=[stream, script], execution_count=2),
            v4.new_markdown_cell("## The mathematics\n\n$$ y = \\gamma x \\tag{1} $$"),
        ],
    )


@pytest.fixture(scope="module")
def build(website, tmp_path_factory):
    """A book of two chapters, built once."""
    tmp_path = tmp_path_factory.mktemp("book")
    pages = [tmp_path / "00_one.ipynb", tmp_path / "01_two.ipynb"]
    nbformat.write(notebook("The first", "What is a width?"), pages[0])
    nbformat.write(notebook("The second"), pages[1])
    assert website.main([str(page) for page in pages], tmp_path / "build") == 0
    return tmp_path / "build"


def test_the_book_builds_clean_and_loads_nothing_from_elsewhere(website, build):
    index = (build / "html/index.html").read_text()
    assert "What is a width?" in index and "Does it build?" in index and "01 The second" in index
    page = (build / "html/00_one.html").read_text()
    assert "mathjax/tex-svg-full.js" in page and "a = 58" not in page and "&lt;b&gt;bold" in page
    assert (build / "html/_static/mathjax/tex-svg-full.js").stat().st_size > 10**6
    assert website.external_requests(build / "html") == []
    seventh = (build / "html/seventh_paper.html").read_text()
    assert 'href="seventh_paper.html"' in index and seventh.count("HalfSandwich") > 1
    names = (build / "html/api.html").read_text()
    assert [name for name in slimnb.__all__ if f'id="slimnb.{name}"' not in names] == []


def test_each_page_has_a_policy_that_lets_the_books_own_scripts_run_and_no_other(build):
    pages = list((build / "html").glob("*.html"))
    for page in pages:
        text = page.read_text()
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'" and rules["base-uri"] == "'none'"
        assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "data:"} & set(rules["script-src"].split())
        scripts = re.findall(r"<script(?![^>]*src=)[^>]*>(.*?)</script>", text, re.S)
        handlers = re.findall(r' on\w+="([^"]*)"', text)
        assert set(handlers) <= {"window.print()"} and scripts and text.index("Security") < text.index("<script")
        for code in [*scripts, *handlers]:
            digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
            assert (digest in policy) == (code != PLANTED), code
    assert len(pages) > 5 and PLANTED in (build / "html/00_one.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no browser to open the pages in")
@pytest.mark.parametrize(("page", "words"), [
    ("00_one.html", "<mjx-container"),
    ("api.html", "slimnb.MobileNetV1"),
    ("search.html?q=width", "Search finished, found [1-9]"),
])
def test_a_browser_opens_the_pages_without_an_error(build, tmp_path, page, words):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
               "--virtual-time-budget=8000", f"--user-data-dir={tmp_path}", f"file://{build}/html/{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert re.search(words, done.stdout) and "<title>a chapter ran this" not in done.stdout
    refused = [line for line in console if re.search(r"Refused|violates|Security Policy", line)]
    assert len(refused) == (page == "00_one.html"), console  # the script in that chapter's output
    assert not [line for line in console if "Uncaught" in line or "blocked by CORS" in line], console


@pytest.mark.filterwarnings("ignore:slimnb")  # the page prunes a net that is not trained
def test_the_page_of_public_names_shows_each_once_and_its_lines_run(tmp_path, monkeypatch):
    text = (ROOT / "book/api.md").read_text()
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)", text, re.M)) == slimnb.__all__
    lines = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    assert [name for name in slimnb.__all__ if not re.search(rf"\b{name}\b", lines)] == []
    monkeypatch.chdir(tmp_path)  # data and runs go there
    exec(compile(lines, "book/api.md", "exec"), {"__name__": "api"})  # noqa: S102 - our own page


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<img src='//cdn.example/x.png'>",
        '<link rel="stylesheet" href="http://cdn.example/x.css">',
        "<style>@import 'https://cdn.example/x.css';</style>",
        '<p style="background: url(https://cdn.example/x.png)">',
    ],
)
def test_a_request_to_elsewhere_is_found(website, tmp_path, planted):
    (tmp_path / "page.html").write_text(f'<a href="https://ok.example">a link is no request</a>{planted}')
    assert len(website.external_requests(tmp_path)) == 1


def test_a_font_from_elsewhere_is_found(website, tmp_path):
    (tmp_path / "a.css").write_text("@font-face { src: url('https://fonts.example/a.woff2') }")
    assert website.external_requests(tmp_path) == ["a.css: https://fonts.example/a.woff2"]


def test_executed_chapters_of_older_text_or_code_are_executed_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("notebooks", "build/smoke"):
        Path(folder).mkdir(parents=True)
    for name in ("00_current", "01_older", "02_never_executed"):
        Path(f"notebooks/{name}.py").write_text("# %% [markdown]\n# Its prose.\n\n# %%\nchapter.end()\n")
    key = content_key("notebooks/00_current.py", {"scale": "smoke"})
    for name, of in (("00_current", key), ("01_older", key[::-1])):
        done = notebook()
        done.metadata["slimnb"] = {"key": of}
        ended = nbformat.v4.new_output("display_data", metadata={END: True})
        done.cells = [nbformat.v4.new_code_cell("chapter.end()", outputs=[ended], execution_count=1)]
        nbformat.write(done, f"build/smoke/{name}.ipynb")
    assert tool("book").outdated() == ["build/smoke/01_older.ipynb"]
    shown = [nbformat.read(f"build/smoke/{name}.ipynb", as_version=4) for name in ("00_current", "01_older")]
    assert [cell.source for cell in shown[0].cells] == ["Its prose.", "chapter.end()"] and len(shown[1].cells) == 1


def test_unchanged_sources_keep_their_dates(website, tmp_path):
    nbformat.write(notebook(), tmp_path / "00_one.ipynb")
    for _ in range(2):
        website.assemble([tmp_path / "00_one.ipynb"], tmp_path / "site")
        dates = {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*.*")}
    (tmp_path / "site/stale.md").write_text("left by a chapter that was renamed")
    website.assemble([tmp_path / "00_one.ipynb"], tmp_path / "site")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*.*")} == dates
