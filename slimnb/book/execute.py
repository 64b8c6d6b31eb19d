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
from slimnb.errors import BookError, BusyError, SlimnbError, printable

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
    old content of `out_path` is then still there.
    """
    notebook, out_path, values = Path(notebook), Path(out_path).resolve(), dict(parameters or {})
    book = read_chapter(notebook)
    declared_by(book).check(values)
    import papermill  # only now: a misspelt parameter is refused without it

    key = content_key(notebook, values)
    out_path.parent.mkdir(parents=True, exist_ok=True)
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


def _run(book: NotebookNode, notebook: Path, echo: bool, timeout: int | None) -> BookError | None:
    """Execute the cells of `book` in place; the error that stopped it short of its last cell, or None."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    place = {"metadata": {"path": str(notebook.resolve().parent)}}
    client = _client(echo)(book, kernel_name=KERNEL, timeout=timeout, startup_timeout=120, coalesce_streams=True,
                           raise_on_iopub_timeout=True, resources=place)
    started, number = time.monotonic(), itertools.count(1)
    titles = sum(1 for cell in book.cells if heading(cell))
    try:
        with client.setup_kernel():
            for index, cell in enumerate(book.cells):
                if title := heading(cell):
                    at = f"{next(number)}/{titles}"
                    print(printable(f"[{notebook.stem}] {time.monotonic() - started:4.0f} s  {at} {title}"), flush=True)
                client.execute_cell(cell, index)
            about = client.wait_for_reply(client.kc.kernel_info())
            book.metadata["language_info"] = about["content"]["language_info"]
    except CellExecutionError:
        return None  # the error is among the outputs, where check_whole finds it
    except CellTimeoutError:
        return BookError(notebook.stem, f"a cell ran longer than {timeout} s", "Raise the timeout.")
    except DeadKernelError:
        return BookError(notebook.stem, "its kernel died in the middle of a cell (out of memory?)",
                         "Free memory or lower the batch size, then run again.", KEPT)
    except (NoSuchKernel, RuntimeError) as error:
        return BookError(f"{sys.executable[-60:]} -m ipykernel", f"no kernel: {str(error)[:60]}", "Run `make setup`.",
                         KEPT)
    return None


def _client(echo: bool):
    """The class of nbclient's clients, which with `echo` also print what the cells print."""
    from nbclient import NotebookClient

    class Client(NotebookClient):
        def process_message(self, *message, **words):
            output = super().process_message(*message, **words)
            if echo and output and output.output_type == "stream" and output.name == "stdout":
                print(output.text, end="", flush=True)
            return output

    return Client


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
    with tempfile.TemporaryDirectory(prefix="slimnb-") as scratch:
        spec = Path(scratch, "kernels", KERNEL)
        spec.mkdir(parents=True)
        argv = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += ["--log-level=ERROR"]  # else each kernel warns that loopback TCP is not encrypted
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
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(nbformat.writes(book) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # the rename itself survives a power cut only after this
    os.close(folder)
