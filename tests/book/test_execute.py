"""Executing a chapter: the output is whole or the last good one stays, whatever happens in between."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from nbclient.client import _RGX_CARRIAGERETURN
from refusals import fails as refuses

from slimnb.book.execute import CUT, KERNEL, MAX_TEXT, _merge, _own_kernel, execute, refresh_prose
from slimnb.book.notebook import check_whole, code_hash, content_key, declared_by, is_current, read_chapter
from slimnb.errors import SlimnbError

# Without Chapter.begin, which imports torch: a kernel then starts in one second.
TINY = """# %% [markdown]
# # A tiny chapter
#
# > Does it run?

# %% tags=["parameters"]
scale = "smoke"
seed = 0
seeds = 1
device = "auto"
data = "auto"
out = ""
lr = 0.1
note = "none"

# %%
from pathlib import Path
from slimnb.book.chapter import Chapter
chapter = Chapter("01_tiny", {"scale": scale}, "cpu", Path("."))
# Chapter.begin("01_tiny", globals(), lr=Float(), note=Folder())

# %%
MIDDLE

# %%
print("after")

# %%
chapter.end()
"""
BEGIN = "from slimnb.book.parameters import Float, Folder\nfrom slimnb.book.chapter"
RULES = 'False and Chapter.begin("01_tiny", globals(), lr=Float(), note=Folder())'


def write(folder: Path, middle: str = "print(lr, seed)", name: str = "01_tiny.py", text: str = TINY) -> Path:
    path = folder / name
    path.write_text(
        text.replace("# Chapter.begin", "# was: Chapter.begin").replace("MIDDLE", f"{RULES}\n{middle}")
    )
    return path


def text_of(path: Path) -> str:
    book = nbformat.read(path, as_version=4)
    return "".join(o.get("text", "") for c in book.cells if c.cell_type == "code" for o in c.outputs)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a chapter and its good output, made once."""
    folder = tmp_path_factory.mktemp("good")
    write(folder)
    execute(folder / "01_tiny.py", folder / "out.ipynb", {"seed": 7})
    return folder


def test_a_good_run_is_whole_and_names_what_it_came_from(good):
    book = nbformat.read(good / "out.ipynb", as_version=4)
    nbformat.validate(book)
    check_whole(book, "out")
    assert "0.1 7" in text_of(good / "out.ipynb") and "after" in text_of(good / "out.ipynb")
    assert book.metadata.slimnb.parameters == {"seed": 7}
    assert book.metadata.slimnb.code == code_hash(read_chapter(good / "01_tiny.py"))
    assert is_current(good / "01_tiny.py", good / "out.ipynb", {"seed": 7})
    left = {path.name for path in good.iterdir()} - {".out.lock"}
    assert left == {"01_tiny.py", "out.ipynb"}


def test_an_output_can_be_committed(good):
    raw = (good / "out.ipynb").read_text()
    assert "papermill" not in raw and str(good) not in raw and str(Path.home()) + "/" not in raw
    first = [cell.id for cell in read_chapter(good / "01_tiny.py").cells]
    assert first == [cell.id for cell in read_chapter(good / "01_tiny.py").cells]
    assert len(set(first)) == len(first)


def test_only_the_last_progress_line_of_each_training_run_is_kept(tmp_path):
    lines = [f"{arm}: step {step}/3, ce 1.0" for arm in ("A", "B (seed 0)") for step in (1, 2, 3)]
    path = write(tmp_path, f"print('start')\nprint({chr(10).join(lines)!r})\nprint('end')")
    execute(path, tmp_path / "out.ipynb")
    shown = text_of(tmp_path / "out.ipynb")
    assert shown.startswith("start\nA: step 3/3, ce 1.0\nB (seed 0): step 3/3, ce 1.0\nend\n")


def test_staleness_is_a_matter_of_content_not_of_dates(good, tmp_path):
    path = write(tmp_path)
    key = content_key(path, {"seed": 7})
    os.utime(path, (1, 1))
    assert content_key(path, {"seed": 7}) == key == content_key(good / "01_tiny.py", {"seed": 7})
    assert content_key(path, {"seed": 8}) != key
    assert not is_current(path, good / "out.ipynb", {"seed": 8})
    write(tmp_path, "print(seed, lr)")
    assert content_key(path, {"seed": 7}) != key
    assert not is_current(path, tmp_path / "absent.ipynb")


def test_new_prose_is_put_into_what_was_executed_and_nothing_is_run(good, tmp_path):
    out = tmp_path / "out.ipynb"
    out.write_bytes((good / "out.ipynb").read_bytes())
    refresh_prose(good / "01_tiny.py", out)
    assert out.read_bytes() == (good / "out.ipynb").read_bytes()
    text = TINY.replace("Does it run?", "Other words?")
    text = text.replace("# %%\nprint", "# %% [markdown]\n# A new cell.\n\n# %%\nprint")
    path = write(tmp_path, "print(lr, seed)", text=text)
    assert is_current(path, out, {"seed": 7})
    refresh_prose(path, out)
    assert is_current(path, out, {"seed": 7}) and text_of(out) == text_of(good / "out.ipynb")
    shown, injected = nbformat.read(out, as_version=4), "injected-parameters"
    assert [c.source for c in shown.cells if injected not in c.metadata.get("tags", [])] == [
        c.source for c in read_chapter(path).cells]
    assert [injected in c.metadata.get("tags", []) for c in shown.cells[:4]] == [False, False, True, False]
    write(tmp_path, "print(1)")
    with pytest.raises(SlimnbError, match="other code"):
        refresh_prose(path, out)


def fails(folder: Path, middle: str, code: str, **options) -> str:
    """Execute a chapter with `middle` over a good output: it must fail with `code` and leave that output."""
    path, out = write(folder, middle), folder / "out.ipynb"
    out.write_text("the last good one")
    with pytest.raises(SlimnbError) as caught:
        execute(path, out, **options)
    line = str(caught.value)
    assert type(caught.value).__name__ == code and len(line) <= 240 and "\n" not in line, line
    assert out.read_text() == "the last good one"
    assert not (folder / ".out.running.ipynb").exists()
    return line


@pytest.mark.parametrize(
    ("middle", "code", "words"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "BookError", "kernel died"),
        ("import sys\nsys.exit(0)", "BookError", "SystemExit"),
        ("raise ValueError('no such\\nthing')", "BookError", "cell 4 — ValueError: no such thing"),
        ("raise KeyboardInterrupt", "BookError", "KeyboardInterrupt"),
        ("import os\nos._exit(0)", "BookError", "kernel died"),
        (
            "from slimnb.errors import BusyError\nraise BusyError('run x', 'is held', 'Wait.')",
            "BusyError",
            "run x",
        ),
    ],
)
def test_a_run_that_is_not_whole_is_a_failure(tmp_path, middle, code, words):
    assert words in fails(tmp_path, middle, code)


def test_a_chapter_must_reach_its_end(tmp_path):
    path = write(tmp_path, text=TINY.replace("chapter.end()", "pass"))
    with pytest.raises(SlimnbError, match=r"BookError.*chapter.end\(\)"):
        execute(path, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists() and (tmp_path / "out.failed.ipynb").exists()


def test_a_cell_that_never_ends_is_stopped_and_its_kernel_says_nothing_of_it(tmp_path, capfd):
    assert "longer than 2 s" in fails(tmp_path, "while True: pass", "BookError", timeout=2)
    assert not capfd.readouterr().err


def test_a_loop_that_prints_is_stopped_at_the_limit(tmp_path):
    assert "longer than 3 s" in fails(tmp_path, "while True:\n    print('x' * 1000)", "BookError", timeout=3)
    assert (tmp_path / "out.failed.ipynb").stat().st_size < 3 * MAX_TEXT


def test_one_long_line_does_not_stop_a_chapter(tmp_path):
    """A megabyte in one line took minutes: the time went into a pattern that begins again at every character."""
    middle = "import sys\nsys.stderr.write('e' * 10)\nprint('start')\nprint('x' * 10**6)\nprint('end')\n'y' * 10**6"
    began = time.monotonic()
    execute(write(tmp_path, middle), tmp_path / "out.ipynb", timeout=60)
    assert time.monotonic() - began < 20
    (cell,) = [c for c in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if "start" in c.source]
    stdout, stderr, shown = cell.outputs
    assert (stdout.name, stderr.name, stderr.text) == ("stdout", "stderr", "e" * 10)
    assert stdout.text.startswith("start\nx") and stdout.text.endswith(CUT) and len(stdout.text) == MAX_TEXT + len(CUT)
    assert shown.data["text/plain"].endswith(CUT) and shown.data["text/plain"].startswith("'yy")
    assert "after" in text_of(tmp_path / "out.ipynb")


TEXTS = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text("ab\r\n", max_size=6)), max_size=8)


@given(TEXTS)
def test_streams_are_merged_as_nbclient_does(parts):
    outputs = []
    for name, text in parts:
        outputs.append(nbformat.v4.new_output("stream", name=name, text=text))
        _merge(outputs)
    for name in ("stdout", "stderr"):
        whole = "".join(text for kind, text in parts if kind == name)
        merged = [output.text for output in outputs if output.name == name]
        assert merged == [_RGX_CARRIAGERETURN.sub("", whole)] * any(kind == name for kind, _ in parts)


def test_what_killed_runs_left_is_removed_and_what_the_living_hold_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid(), "mine"):
        (tmp_path / f"temporary/slimnb-{process}-x/kernels").mkdir(parents=True)
        (tmp_path / f".tmp-{process}-x.ipynb").write_text("half of it")
    execute(write(tmp_path), tmp_path / "out.ipynb")
    left = {path.name for folder in (tmp_path, tmp_path / "temporary") for path in folder.glob("*-*-*")}
    assert left == {f"slimnb-{os.getpid()}-x", "slimnb-mine-x", f".tmp-{os.getpid()}-x.ipynb", ".tmp-mine-x.ipynb"}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", "ends in .ipynb"),
        ("folder", "ends in .ipynb"),
        ("x.py", "ends in .ipynb"),
        ("01_tiny.py", "ends in .ipynb"),
        ("folder.ipynb", "is a folder"),
        ("pipe.ipynb", "is a folder, pipe"),
        ("copy.ipynb", "would replace a chapter"),
        ("linked.ipynb", "would replace a chapter"),
        ("hard.ipynb", "would replace a chapter"),
        ("02_other.ipynb", "would replace a chapter"),
        ("01_tiny.py/x.ipynb", "not accessible"),
        ("n" * 300 + ".ipynb", "File name too long"),
        ("n" * 245 + ".ipynb", "File name too long"),
        ("n/" * 3000 + ".ipynb", "File name too long"),
        ("circle.ipynb", "is no path"),
        ("a\0b.ipynb", "is no path"),
        ("a\nb\x1b[2J", "ends in .ipynb"),
        ("/proc/nowhere/x.ipynb", "No such file"),
    ],
)
def test_a_place_that_cannot_take_the_output_is_refused_before_anything_runs(tmp_path, monkeypatch, place, words):
    monkeypatch.setattr("slimnb.book.execute._run", lambda *_: pytest.fail("it ran"))
    text = write(tmp_path)
    (tmp_path / "02_other.py").write_text("x = 1")
    nbformat.write(read_chapter(text), tmp_path / "copy.ipynb")
    (tmp_path / "hard.ipynb").hardlink_to(tmp_path / "copy.ipynb")
    (tmp_path / "linked.ipynb").symlink_to("copy.ipynb")
    (tmp_path / "circle.ipynb").symlink_to("circle.ipynb")
    (tmp_path / "folder.ipynb").mkdir()
    os.mkfifo(tmp_path / "pipe.ipynb")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with refuses("ParameterError|StoreError", words):
        execute(tmp_path / "copy.ipynb", tmp_path / place)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_an_unfinished_copy_is_not_written_over_either(tmp_path):
    nbformat.write(read_chapter(write(tmp_path)), tmp_path / "x.failed.ipynb")
    with refuses("ParameterError", "would replace a chapter"):  # a whole x.ipynb removes x.failed.ipynb
        execute(tmp_path / "x.failed.ipynb", tmp_path / "x.ipynb")


def test_half_a_character_in_an_output_is_kept(tmp_path):
    execute(write(tmp_path, r"print('\ud800')"), tmp_path / "out.ipynb")
    assert "after" in text_of(tmp_path / "out.ipynb")


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("ParameterError", {"rl": 0.1}),
        ("ParameterError", {"x = 1; import os": 1}),
        ("ParameterError", {"seed": np.int64(3)}),
        ("ParameterError", {"lr": np.False_}),
        ("ParameterError", {"lr": "0.1"}),
        ("ParameterError", {"lr": True}),
        ("ParameterError", {"lr": float("nan")}),
        ("ParameterError", {"lr": -1.0}),
        ("ParameterError", {"seed": -1}),
    ],
)
def test_parameters_are_refused_before_a_kernel_starts(tmp_path, code, values):
    path, out = write(tmp_path), tmp_path / "out" / "x.ipynb"
    with pytest.raises(SlimnbError) as caught:
        execute(path, out, values)
    assert type(caught.value).__name__ == code and not out.parent.exists()


def test_a_typo_given_to_papermill_itself_is_refused_in_the_notebook_in_one_line(tmp_path):
    text = TINY.replace("# Chapter.begin", "Chapter.begin").replace("from slimnb.book.chapter", BEGIN)
    nbformat.write(read_chapter(write(tmp_path, text=text)), tmp_path / "in.ipynb")
    with _own_kernel(), pytest.raises(papermill.PapermillExecutionError) as caught:
        options = {"kernel_name": KERNEL, "language": "python", "progress_bar": False}
        papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "o.ipynb", {"nott": "x"}, **options)
    assert caught.value.ename == "ParameterError" and "Did you mean note?" in caught.value.evalue
    assert caught.value.traceback == [caught.value.evalue]


def test_a_parameter_value_is_never_code(tmp_path):
    payload = 'a/"); open("owned", "w"); print("\\'
    path = write(tmp_path, "print(repr(note))")
    execute(path, tmp_path / "out.ipynb", {"note": payload})
    assert repr(payload) in text_of(tmp_path / "out.ipynb") and not (tmp_path / "owned").exists()


def test_the_kernel_is_this_interpreter_without_a_home(tmp_path, monkeypatch):
    fake = tmp_path / "jupyter" / "kernels" / "python3"
    fake.mkdir(parents=True)
    (fake / "kernel.json").write_text(
        json.dumps({"argv": ["false"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    path = write(tmp_path, f"import sys\nassert sys.executable == {sys.executable!r}\nprint('same')")
    execute(path, tmp_path / "out.ipynb")
    assert "same" in text_of(tmp_path / "out.ipynb")
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "jupyter")


def test_two_executions_into_one_file_do_not_mix(good):
    before = (good / "out.ipynb").read_bytes()
    with FileLock(good / ".out.lock"), pytest.raises(SlimnbError) as caught:
        execute(good / "01_tiny.py", good / "out.ipynb")
    assert type(caught.value).__name__ == "BusyError" and caught.value.exit_status == 75
    assert (good / "out.ipynb").read_bytes() == before


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.sweep)])
def test_killed_at_any_moment_the_last_output_survives_and_no_kernel_stays(tmp_path, kills):
    out, pids = tmp_path / "out.ipynb", tmp_path / "pids"
    middle = f"import os, time\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\ntime.sleep(0.3)"
    path = write(tmp_path, middle)
    execute(path, out)
    kept = out.read_bytes()
    program = "import sys; from slimnb.book.execute import execute; execute(sys.argv[1], sys.argv[2], {'seed': 1})"
    moments = random.Random(0)
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", program, path, out], stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(1.2, 4.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
        now = out.read_bytes()
        if now != kept:  # it was quicker than the signal: then the new one is whole
            check_whole(nbformat.reads(now.decode(), as_version=4), "out")
            kept = now
    deadline = time.monotonic() + 60
    alive = {int(line) for line in pids.read_text().split()}
    while alive and time.monotonic() < deadline:
        alive = {pid for pid in alive if Path(f"/proc/{pid}").exists() and "ipykernel" in _command(pid)}
        time.sleep(0.2)
    assert not alive
    execute(path, out)
    check_whole(nbformat.read(out, as_version=4), "out")
    assert not (tmp_path / ".out.running.ipynb").exists()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("01_a.py", "# %%\n<<<<<<< ours\nx = 1\n", "line 2"),
        ("01_a.ipynb", "{broken", "no notebook of format 4"),
        ("01_a.ipynb", '{"nbformat": 9, "cells": [], "metadata": {}}', "no notebook of format 4"),
        ("01_a.txt", "x", "is no .py or .ipynb file"),
        ("01_a.py", "# %%\nx = 1\n", "0 cells tagged"),
        ("01_a.py", "# Größe\n# %%\n".encode("latin-1"), "line 1 — is not UTF-8"),
        ("01_a.ipynb", b"\xff\xfe{}", "line 1 — is not UTF-8"),
        ("01_a.py", '# %% tags=["parameters"]\nscale = "smoke\n', "'scale = \"smoke' — is no Python"),
        ("01_a.py", '# %% tags=["parameters"]\nscale = 1\n# %%\nprint(\n', "is no Python"),
        ("01_a.py", '# %% tags=["parameters"]\nscale = {[]: 1}\n', "literals only"),
    ],
)
def test_a_file_that_is_no_chapter_is_named(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refuses("BookError|ParameterError", re.escape(words)):
        declared_by(read_chapter(path))


def test_a_byte_order_mark_changes_nothing(tmp_path):
    path = write(tmp_path)
    plain = read_chapter(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_chapter(path) == plain


TRAINS = """
import os, sys, time
from dataclasses import replace
import torch
torch.set_num_threads(1)
from slimnb.data.datasets import load_data
from slimnb.papers.slimmable import recipes
from slimnb.runs.store import RunStore
from slimnb.train import experiment
recipe = replace(recipes.SMOKE, epochs=30, mults=(0.5, 1.0), layout=((8, 1), (16, 1)), batch_size=16, dtype="float32")
images = load_data("synthetic", train=60, test=20)
first, second = (RunStore(f"{FOLDER}/{name}", f"{FOLDER}/none") for name in ("first", "second"))
stopped = experiment.run(recipe, images, first)
straight = experiment.run(recipe, images, second, quiet=True)
weights = [store.weights_of(stopped.run_id) for store in (first, second)]
print("same:", stopped.rows == straight.rows, stopped.history == straight.history,
      all(torch.equal(weights[0][name], value) for name, value in weights[1].items()))
"""


@pytest.mark.parametrize(("moment", "number"), [
    ("training", signal.SIGTERM), ("drawing", signal.SIGINT),
    pytest.param("drawing", signal.SIGTERM, marks=pytest.mark.sweep),
    pytest.param("start", signal.SIGTERM, marks=pytest.mark.sweep)])
def test_asked_to_stop_the_command_tells_its_kernel_and_ends_with_75(tmp_path, moment, number):
    middle = f"FOLDER = {str(tmp_path)!r}\n" + (
        TRAINS if moment == "training" else "import time\nopen(f'{FOLDER}/begun', 'w').close()\ntime.sleep(60)")
    path, out = write(tmp_path, middle), tmp_path / "out.ipynb"
    out.write_text("the last good one")
    command = [sys.executable, "-m", "slimnb", "run", path, "--out", out]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        if moment == "start":
            process.stdout.readline()  # the first title: its kernel has just started
        begun = "first/*/events.jsonl" if moment == "training" else "begun"
        while moment != "start" and not list(tmp_path.glob(begun)) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert re.fullmatch(r"slimnb: BusyError: stopped[^\n]{,200}\n", said)
    assert out.read_text() == "the last good one" and not list(tmp_path.glob("*.failed.ipynb"))
    if moment == "training":
        assert "Progress is kept" in said and list(tmp_path.glob("first/*/ck-*"))
        execute(path, out)
        assert "same: True True True" in text_of(out)
