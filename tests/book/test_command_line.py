"""The command line: whatever is typed, it is done, or refused in one line with the exit status of its class."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import slimnb.book.execute
import slimnb.data.datasets
from slimnb import errors
from slimnb.__main__ import main
from slimnb.errors import BookError, StoreError

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = """# %% [markdown]
# # A tiny chapter

# %% tags=["parameters"]
scale = "smoke"
seed = 0
seeds = 1
device = "auto"
data = "auto"
out = ""
lr = 0.1
widths = [0.5, 1.0]

# %%
from slimnb.book.chapter import Chapter
from slimnb.book.parameters import Float, Numbers
chapter = Chapter.begin("NAME", globals(), lr=Float(), widths=Numbers(1.0))

# %%
print("a → b")

# %%
chapter.end()
"""
CHAPTERS = ("00_notation", "01_slimmable_networks", "04_pss_net")
DONE = "the stub stands for a kernel"


def ran(*_):
    return BookError("it", DONE, "None.")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A repository of three tiny chapters; no kernel starts, nothing is trained, nothing is downloaded."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "slimnb").mkdir()
    (folder / "notebooks").mkdir()
    (folder / "pyproject.toml").touch()
    for name in CHAPTERS:
        (folder / f"notebooks/{name}.py").write_text(CHAPTER.replace("NAME", name), encoding="utf-8")
    load, synthetic = slimnb.data.datasets.load_data, []

    def loaded(name, *arguments, download=False, **options):
        if download:
            raise StoreError("it", DONE, "None.")
        if name == "synthetic":
            synthetic[:] = synthetic or [load("synthetic", train=60, test=20)]
            return synthetic[0]
        return load(name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(slimnb.book.execute, "_run", ran)
        patch.setattr(slimnb.data.datasets, "load_data", loaded)
        patch.setenv("SLIMNB_NO_TRAINING", "1")
        patch.delenv("SLIMNB_DATA", raising=False)
        yield folder


def typed(*arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command whose stdout is ASCII. An error that is none of ours escapes."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=name, write_through=True) for name in ("ascii", "utf-8")]
    status = 0
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            main(list(arguments))
        except SystemExit as end:
            status = end.code or 0
    return status, *(stream.buffer.getvalue().decode() for stream in streams)


def outcome(arguments) -> str:
    """"done", "accepted" (it would train or run) or the class of the one line that refuses it."""
    status, _, line = typed(*arguments)
    if status == 0:
        assert line == ""
        return "done"
    name = line.split(": ")[1]
    assert line.startswith("slimnb: ") and line.endswith("\n") and line[:-1].isprintable() and len(line) <= 241, line
    assert vars(errors)[name].exit_status == status, line
    return "accepted" if DONE in line or "SLIMNB_NO_TRAINING" in line or "is not finished" in line else name


LONG, ODD, FACES = "x" * 5000, "a\nb\x1b[2J\udcff\0", "\U0001f600" * 99
REFUSED = {  # each line is a command, and the class that refuses it
    "": "ParameterError",
    "bogus": "ParameterError",
    "--bogus": "ParameterError",
    "--help=3 run": "ParameterError",
    "--tyro-print-completion zz": "ParameterError",
    "--tyro-write-completion bash nowhere/x": "StoreError",
    "run": "ParameterError",
    "run 00 01": "ParameterError",
    "run 00 --bogus": "ParameterError",
    "run 00 --scael small": "ParameterError",
    "run 00 --scale": "ParameterError",
    "run 00 --scale big": "ParameterError",
    f"run 00 --scale {LONG}": "ParameterError",
    "run 00 --scale small --scale smoke": "ParameterError",
    "run 00 --scale small -p scale smoke": "ParameterError",
    "run 00 -p scale smoke --scale smoke": "ParameterError",
    "run 00 -p seeds 1 -p seeds 2": "ParameterError",
    "run 00 -p seeds": "ParameterError",
    "run 00 -p": "ParameterError",
    "run 00 -p sedes 1": "ParameterError",
    f"run 00 -p {LONG} 1": "ParameterError",
    f"run 00 -p seeds {LONG}": "ParameterError",
    f"run 00 -p seeds {'9' * 5000}": "ParameterError",
    f"run 00 -p seeds 0x{'f' * 9000}": "ParameterError",
    f"run 00 -p widths [0x{'f' * 9000}]": "ParameterError",
    f"run 00 -p widths [{'0.1,' * 500}1.0]": "ParameterError",
    f"run 00 -p widths [{','.join(str(i / 999) for i in range(1, 999))}]": "accepted",
    f"run 00 -p lr {'-' * 50000}1": "ParameterError",
    f"run 00 -p lr {'(' * 5000}": "ParameterError",
    "run 00 -p lr nan": "ParameterError",
    "run 00 -p lr -1": "ParameterError",
    "run 00 -p lr 1e400": "ParameterError",
    "run 00 -p seed 4294967295 -p seeds 2": "ParameterError",
    "run 00 -p seed 4294967296": "ParameterError",
    "run 00 -p device cuda:x": "ParameterError",
    "run 00 -p data nowhere": "ParameterError",
    "run 00 -p out ..": "ParameterError",
    "run 00 --timeout 0": "ParameterError",
    "run 00 --timeout -1": "ParameterError",
    "run 00 --timeout 1e3": "ParameterError",
    f"run 00 --timeout {10**30}": "ParameterError",
    "run 00 --out": "ParameterError",
    "run 00 --out .": "ParameterError",
    "run 00 --out notebooks": "ParameterError",
    "run 00 --out notebooks/00_notation.py": "ParameterError",
    "run 00 --out notebooks/04_pss_net.ipynb": "ParameterError",
    f"run 00 --out {LONG}.ipynb": "StoreError",
    "run 00 --out pyproject.toml/x.ipynb": "StoreError",
    "run 00 --out x.ipynb --publish": "ParameterError",
    "run 00 --out x.ipynb --out y.ipynb": "ParameterError",
    "run notebooks/00_notation.ipynb": "BookError",
    "run pyproject.toml": "BookError",
    "run notebooks": "BookError",
    "run 0": "BookError",
    "run 99": "BookError",
    f"run {LONG}": "BookError",
    f"run {ODD}": "BookError",
    f"run {FACES}": "BookError",
    "train": "ParameterError",
    "train 99": "BookError",
    "train 00": "ParameterError",
    f"train {LONG}": "BookError",
    "train 01 --seeds abc": "ParameterError",
    "train 01 --seeds 0": "ParameterError",
    f"train 01 --seeds {10**12}": "ParameterError",
    f"train 01 --seeds {'9' * 5000}": "ParameterError",
    "train 01 --seed -1": "ParameterError",
    "train 01 --seed 1.5": "ParameterError",
    "train 01 --scale smoke --seed 4294967295 --seeds 2": "ParameterError",
    "train 01 --scale big": "ParameterError",
    "train 01 --device cuda:99": "ParameterError",
    "train 01 --device gpu": "ParameterError",
    "train 01 --data ../x": "ParameterError",
    "train 01 --data nowhere/at/all": "MissingDataError",
    "train 01 --data cifar10": "MissingDataError",
    "train 01 --scale smoke --arm nobody": "ParameterError",
    "train 01 --commit yes": "ParameterError",
    "train 01 --seed 1 --seed 2": "ParameterError",
    "fetch": "ParameterError",
    "fetch imagenet": "ParameterError",
    f"fetch {LONG}": "ParameterError",
    "fetch cifar10 cifar100": "ParameterError",
    "figures 01": "ParameterError",
    "figures --scale big": "ParameterError",
    "runs --scale big": "ParameterError",
    "runs --commit nobody": "ParameterError",
    f"runs --commit {ODD}": "ParameterError",
    "runs --commit": "ParameterError",
    "claims --smoke yes": "ParameterError",
    "claims small": "ParameterError",
    # and these are rightly accepted
    "run 00": "accepted",
    "run notebooks/00_notation.py --publish": "accepted",
    "run 04 --scale small -p seeds 3 -p lr 1 --out build/x.ipynb": "accepted",
    "run 00 --out new/folder/x.ipynb --timeout 60 --echo": "accepted",
    "train 01 --scale smoke": "accepted",
    "train slimmable --scale smoke --seed 4294967295": "accepted",
    "fetch cifar10": "accepted",
    "figures": "accepted",
    "runs": "done",
    "runs --commit slimmable": "done",
    "claims": "done",
    "claims --smoke": "done",
    "--help": "done",
    "run --help": "done",
}


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: ascii(line[:60]))
def test_a_command_is_done_or_refused_in_one_line(book, line):
    assert outcome(line.split(" ") if line else []) == REFUSED[line]


WORDS = """- -- -1 0 1 2 1e3 nan None [] [0.5,1.0] smoke small full cpu auto cuda:7 cifar10 synthetic slimmable pss_net
00 01_ notebooks/00_notation.py /dev/full ~nobody/x.ipynb x.ipynb a/b.ipynb .. US-Net %s {0} \\ → scale seed lr"""
FLAGS = """--scale -p --parameters --out --publish --echo --timeout --seed --seeds --arm --data --device --commit
--smoke --help --debug- -x --scale= --out="""
VALUES = st.sampled_from([*WORDS.split(), "", LONG, ODD, "9" * 5000]) | st.text(max_size=12)
NAMES = st.sampled_from(FLAGS.split())
COMMANDS = st.sampled_from(["run", "run", "train", "train", "fetch", "figures", "runs", "claims", "", "rnu"])
SENSIBLE = {  # of each command, an argument and its options, most of them good
    "run": ("00 00_notation notebooks/01_slimmable_networks.py 9", """--scale=smoke --scale=small --publish --echo
            --out=x.ipynb --out=x/y.ipynb --out=. --timeout=9 --timeout=0 -p|lr|0.5 -p|lr|-1 -p|seeds|3 -p|scale|full
            -p|seed|4294967295 -p|widths|[0.5,1.0] -p|widths|[1.0,0.5] -p|out|figures -p|out|pyproject.toml/x"""),
    "train": ("01 slimmable 04_pss_net 00", """--scale=smoke --seed=5 --seed=4294967295 --seeds=2 --seeds=1001
              --arm=S-Net --arm=US-Net --arm=x --data=synthetic --data=a/b --device=cpu --device=cuda:9 --commit"""),
    "fetch": ("cifar10 cifar100 mnist", "--x"),
    "runs": ("--scale=smoke --scale=full", "--commit=slimmable --commit=x --scale=smoke"),
}
STRUCTURED = st.sampled_from([*SENSIBLE]).flatmap(lambda name: st.tuples(
    st.just([name]), *(st.lists(st.sampled_from(words.split()), min_size=least, max_size=most)
                       for words, least, most in zip(SENSIBLE[name], (1, 0), (1, 4), strict=True))))
LINES = st.one_of(
    st.tuples(COMMANDS, VALUES, st.lists(NAMES | VALUES, max_size=6)).map(lambda parts: [*parts[:2], *parts[2]]),
    STRUCTURED.map(lambda parts: [word for part in parts for option in part for word in option.split("|")]),
)


@given(LINES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_typed_ends_in_one_line(book, arguments):
    event(outcome(arguments))  # counted by --hypothesis-show-statistics


@pytest.mark.sweep
@given(LINES)
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_typed_ends_in_one_line_thousands_of_times(book, arguments):
    event(outcome(arguments))  # counted by --hypothesis-show-statistics


def command(*arguments, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, *options.pop("python", ()), "-m", "slimnb", *arguments]
    return subprocess.run(line, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **options)


def test_a_reader_that_has_gone_is_no_error(book):
    here, there = os.pipe()
    os.close(here)
    done = command("runs", stdout=there, cwd=book)
    os.close(there)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_under_the_output_is_one_line(book):
    with open("/dev/full", "w") as full:
        done = command("claims", stdout=full, cwd=book)
    assert done.returncode == 6 and done.stderr.startswith("slimnb: ResourceError: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_streams_are_no_error_for_the_command_nor_for_what_it_starts(book, streams):
    child = "import sys; sys.exit(None in (sys.stdout, sys.stderr))"
    code = f"import subprocess, sys; from slimnb.__main__ import main; main(['runs'])\n" \
           f"assert not subprocess.run([sys.executable, '-c', {child!r}]).returncode"
    done = subprocess.run([sys.executable, "-c", code], cwd=book, capture_output=True, text=True, timeout=120,
                          preexec_fn=lambda: [os.close(number) for number in streams])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert ("No run is finished" in done.stdout) == (1 not in streams)


@pytest.mark.parametrize("arguments", [["nope"], ["run", "00", "--nope"], ["run", "--scale"]], ids=" ".join)
def test_an_ascii_terminal_is_told_what_is_wrong(book, arguments):
    line = command(*arguments, env=os.environ | {"PYTHONIOENCODING": "ascii"}, cwd=book).stderr
    assert line.isascii() and arguments[-1] in line and "---" not in line and line.count("\n") == 1, line


def test_a_signal_after_the_end_of_a_command_changes_nothing(book):
    code = """import atexit, os, runpy, signal, sys
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    atexit.register(os.kill, os.getpid(), number)
sys.argv[1:] = ["claims"]
runpy.run_module("slimnb", run_name="__main__", alter_sys=True)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=book, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "No claim" in done.stdout


def test_python_without_docstrings_runs_and_refuses(book):
    done = command("--help", python=["-OO"], stdout=subprocess.PIPE, cwd=book)
    assert done.returncode == 0 and "figures" in done.stdout, done.stderr
    done = command("run", "00", "-p", "lr", "nan", python=["-OO"], cwd=book)
    assert done.returncode == 2 and done.stderr.startswith("slimnb: ParameterError: lr = nan"), done.stderr


def test_an_installed_package_has_no_chapters_and_says_so(tmp_path):
    shutil.copytree(ROOT / "slimnb", tmp_path / "site/slimnb", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    for arguments in (["figures"], ["run", "00"]):
        done = command(*arguments, env=environment, cwd=tmp_path)
        assert done.returncode == 4 and "Work in a clone" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_an_ascii_terminal_shows_what_cells_print(book, monkeypatch):
    text = Path("notebooks/00_notation.py").read_text(encoding="utf-8")
    text = text.replace("= Chapter.begin", "= Chapter('00', {'scale': scale}, 'cpu', None)\nFalse and Chapter.begin")
    Path("arrow.py").write_text(text, encoding="utf-8")
    monkeypatch.undo()
    monkeypatch.setattr(slimnb.book.execute, "_run", RUN)
    status, said, line = typed("run", "arrow.py", "--echo", "--out", "arrow.ipynb")
    assert (status, line) == (0, ""), line
    assert "a \\u2192 b" in said


RUN = slimnb.book.execute._run
