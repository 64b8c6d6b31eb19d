"""Run a chapter, its parameters injected as papermill does it, and keep the result only when it is whole.

papermill alone calls a killed kernel or a `sys.exit(0)` a success, only warns of an unknown parameter, and
empties the last good output at its start. Here bad parameters are refused before a kernel starts; the chapter
runs in memory, is checked cell by cell, and replaces the target in one rename.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from filelock import FileLock, Timeout
from nbformat import NotebookNode

from slimnb.book.chapter import find_root
from slimnb.book.notebook import (
    KEPT,
    check_whole,
    cleaned,
    code_hash,
    content_key,
    declared_by,
    heading,
    read_chapter,
    with_prose,
)
from slimnb.book.parameters import refuse
from slimnb.errors import BookError, BusyError, SlimnbError, printable
from slimnb.runs.files import Failpoint, check_place, sweep, write_file
from slimnb.runs.lock import stopping

MAX_TEXT = 200_000  # characters that a cell's output may have
CUT = f"\n[the rest is left out: a cell's output has at most {MAX_TEXT:,} characters]\n"
KERNEL = "slimnb"  # the name of the temporary kernel specification that starts this very interpreter


def execute(
    notebook: str | Path,
    out_path: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    echo: bool = False,
    timeout: int | None = None,
) -> Path:
    """Execute the chapter at `notebook` into `out_path` (.ipynb) and return that path.

    Parameters are first checked against the chapter's own declaration. One line per section with the time so far goes
    to stdout, and with `echo` all that the cells print. `timeout` (seconds) bounds each cell. Raises ParameterError for
    parameters, BookError for a run that is not whole, BusyError if another process is executing into the same file; the
    old content of `out_path` is then still there. A place that cannot be written, or that holds a chapter, raises
    ParameterError, StoreError or ResourceError before anything runs.
    """
    notebook, values = Path(notebook), dict(parameters or {})
    book = read_chapter(notebook)
    declared_by(book).check(values)
    out_path = _place(Path(out_path), notebook)
    import papermill  # only now: a misspelt parameter is refused without it

    key = content_key(notebook, values)
    with _only_one(out_path), _own_kernel():
        started = time.monotonic()
        book = papermill.execute_notebook(
            book, None, values, prepare_only=True, kernel_name=KERNEL, language="python")
        failure = _run(book, notebook, echo, timeout)
        done = cleaned(book, find_root(notebook.parent))
        failed = out_path.with_name(f"{out_path.stem}.failed.ipynb")
        try:
            check_whole(done, notebook.stem)
        except SlimnbError as error:
            failure = failure or error  # what stopped it says more than what it left undone
        if failure:
            if not isinstance(failure, BusyError):  # that is no fault of the chapter
                _write(done, failed)
            raise failure
        seconds = time.monotonic() - started
        done.metadata["slimnb"] = {
            "key": key, "code": code_hash(done), "parameters": values, "seconds": round(seconds, 1)}
        _write(done, out_path)
        failed.unlink(missing_ok=True)
        print(printable(f"[{notebook.stem}] {seconds:4.0f} s  done: {os.path.relpath(out_path)}"), flush=True)
    return out_path


def refresh_prose(notebook: str | Path, executed: str | Path) -> None:
    """Replace the prose of `executed`, a run of the code in `notebook`, by the prose of `notebook`; nothing is run.

    The file is written only if that changes it. Raises BookError if its code is another.
    """
    book, ran = read_chapter(notebook), nbformat.read(executed, as_version=4)
    if code_hash(book) != code_hash(ran):
        raise BookError(Path(executed).name, "it is a run of other code", f"Run {Path(notebook).stem} again.")
    before = nbformat.writes(ran)
    if nbformat.writes(with_prose(ran, book)) != before:
        _write(ran, Path(executed))


def _place(out: Path, source: Path) -> Path:
    """Return the absolute path of an output of `source` that can be written; what killed runs left beside it goes."""
    try:
        path = out.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, links in a circle, a NUL
        raise refuse("out", str(out), f"is no path: {str(error)[:60]}", "Name a file.") from None
    if path.suffix != ".ipynb":
        raise refuse("out", str(out), "must be a file that ends in .ipynb", f"Set e.g. out='{source.stem[:40]}.ipynb'.")
    failed, text = path.with_name(f"{path.stem}.failed.ipynb"), path.with_suffix(".py")
    own = [place for place in (path, failed, text) if os.path.exists(place) and os.path.samefile(place, source)]
    if own not in ([], [text]) or (os.path.exists(text) and not own):
        raise refuse("out", str(out), "would replace a chapter", "Name another file.")
    for place in (path, failed):
        check_place(place)
    return path


def _run(book: NotebookNode, notebook: Path, echo: bool, timeout: int | None) -> BookError | None:
    """Execute the cells of `book` in place; the error that stopped it short of its last cell, or None."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    place = {"metadata": {"path": str(notebook.resolve().parent)}}
    client = _client(echo)(book, kernel_name=KERNEL, timeout=timeout, startup_timeout=120, iopub_timeout=60,
                           raise_on_iopub_timeout=True, resources=place)
    started, number = time.monotonic(), itertools.count(1)
    titles = sum(1 for cell in book.cells if heading(cell))

    def ask_kernel() -> None:
        process = getattr(getattr(client.km, "provisioner", None), "process", None)  # not before it has started
        if process is not None:
            process.send_signal(signal.SIGTERM)

    try:
        # A signal is for the kernel, which ends at its next safe point and says so in the cell's error.
        with stopping.later(ask_kernel), client.setup_kernel():
            for index, cell in enumerate(book.cells):
                if title := heading(cell):
                    at = f"{next(number)}/{titles}"
                    print(printable(f"[{notebook.stem}] {time.monotonic() - started:4.0f} s  {at} {title}"), flush=True)
                if stopping.requested:
                    return None
                client.execute_cell(cell, index)
            about = client.wait_for_reply(client.kc.kernel_info())
            book.metadata["language_info"] = about["content"]["language_info"]
    except CellExecutionError:
        return None  # the error is among the outputs, where check_whole finds it
    except CellTimeoutError:
        return BookError(notebook.stem, f"a cell ran longer than {timeout} s", "Raise the timeout.")
    except DeadKernelError:
        stopping.check()
        return BookError(notebook.stem, "its kernel died in the middle of a cell (out of memory?)",
                         "Free memory or lower the batch size, then run again.", KEPT)
    except (NoSuchKernel, RuntimeError) as error:
        stopping.check()
        return BookError(f"{sys.executable[-60:]} -m ipykernel", f"no kernel: {str(error)[:60]}", "Run `make setup`.",
                         KEPT)
    return None


def _client(echo: bool):
    """The class of nbclient's clients, which with `echo` also print what the cells print.

    Each of a cell's two streams is one output, and no text is kept beyond MAX_TEXT characters.
    """
    from nbclient import NotebookClient

    class Client(NotebookClient):
        def process_message(self, message, cell, cell_index):
            output = super().process_message(message, cell, cell_index)
            if output and output.output_type == "stream":
                if echo and output.name == "stdout":
                    print(output.text, end="", flush=True)
                _merge(cell.outputs)
            elif output and "text/plain" in output.get("data", {}):
                output.data["text/plain"] = _capped(output.data["text/plain"])
            return output

    return Client


def _merge(outputs: list[NotebookNode]) -> None:
    """Append the last output, text of a stream, to the cell's first output of that stream."""
    new = outputs.pop()
    streams = {output.name: output for output in outputs if output.output_type == "stream"}
    if new.name in streams:
        kept = streams[new.name]
        kept.text = kept.text if kept.text.endswith(CUT) else _capped(_overwritten(kept.text + new.text))
        return
    # The two arrive in any order; the pages are the same every time.
    before = new.name == "stdout" and outputs and outputs[-1].get("name") == "stderr"
    outputs.insert(len(outputs) - bool(before), new)
    new.text = _capped(_overwritten(new.text))


def _overwritten(text: str) -> str:
    """Return the text without what a carriage return lets later text overwrite, as in a progress bar."""
    lines = (line[:-1].rpartition("\r")[2] + line[-1:] for line in text.split("\n"))
    return "\n".join(lines)


def _capped(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + CUT


@contextlib.contextmanager
def _only_one(out_path: Path) -> Iterator[None]:
    path = out_path.with_name(f".{out_path.stem}.lock")
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise BusyError(
            out_path.name,
            "another process is executing into this file",
            "Wait for it, or give another output path.",
        ) from None


@contextlib.contextmanager
def _own_kernel() -> Iterator[None]:
    """A kernel specification for this interpreter in a folder of its own, and the variables that select it.

    So neither a registered kernel nor a home folder is needed, and a `python3` kernel of another environment,
    registered in the user's home, is not taken by mistake.
    """
    sweep(Path(tempfile.gettempdir()), "slimnb-")
    with tempfile.TemporaryDirectory(prefix=f"slimnb-{os.getpid()}-") as scratch:
        spec = Path(scratch, "kernels", KERNEL)
        spec.mkdir(parents=True)
        argv = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += ["--log-level=CRITICAL"]  # else it tells the terminal of loopback TCP, and of being interrupted
        text = json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
        (spec / "kernel.json").write_text(text)
        kernel = {
            "JUPYTER_PATH": scratch,
            "JUPYTER_RUNTIME_DIR": f"{scratch}/run",
            "JUPYTER_CONFIG_DIR": f"{scratch}/config",
            "IPYTHONDIR": f"{scratch}/ipython",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }
        saved = {name: os.environ.get(name) for name in kernel}
        os.environ.update(kernel)
        try:
            yield
        finally:
            for name, value in saved.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _write(book: NotebookNode, path: Path) -> None:
    text = nbformat.writes(book) + "\n"
    # Half a character, which UTF-8 cannot write, is an escape of JSON.
    write_file(path, text.encode("utf-8", "backslashreplace"), Failpoint(), "chapter")
