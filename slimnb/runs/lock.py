"""One writer per folder, and signals that ask the process to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import filelock

from slimnb.errors import BusyError, SlimnbError, StoreError
from slimnb.runs import files
from slimnb.runs.files import Damaged, Failpoint, from_json, label, to_json


@contextmanager
def hold(folder: Path, wait: float, fail: Failpoint) -> Iterator[bytes]:
    """Hold the folder's lock within `with`; it gives the token for `owns`.

    The kernel keeps the lock: the death of its owner frees it at once, and a forked child does not keep it. If it is
    still taken after `wait` seconds, BusyError names host, process and time. Raises StoreError if the file system
    cannot lock.
    """
    path = folder / "lock"
    files.refuse_strange(path)
    lock = filelock.FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise _busy(folder) from None
    except (OSError, NotImplementedError) as error:
        why = f"cannot be locked: {getattr(error, 'strerror', None) or error}"[:90]
        fix = "Put the store on a local disk that you may write to."
        raise StoreError(label(path), why, fix) from None
    try:
        token = _sign(folder, fail)
        yield token
        if owns(folder, token):
            files.forget(folder / "owner.json")
    finally:
        lock.release()


def owns(folder: Path, token: bytes) -> bool:
    """Return whether nobody else has signed the folder since.

    It is false for a writer that was paused while its lock file was deleted and its work taken over.
    """
    try:
        return files.read_file(folder / "owner.json") == token
    except (FileNotFoundError, Damaged, SlimnbError):
        return False


def _sign(folder: Path, fail: Failpoint) -> bytes:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "token": os.urandom(8).hex(),
    }
    token = to_json(owner).encode()
    files.write_file(folder / "owner.json", token, fail, "owner")
    return token


def _busy(folder: Path) -> SlimnbError:
    try:
        owner = from_json(files.read_file(folder / "owner.json"))
        # The file may hold anything; no control character reaches the reader's terminal.
        said = (f"{key} {ascii(owner[key])[:40]}" for key in ("host", "pid", "since"))
        shown = " ".join(said).replace("'", "")
    except (FileNotFoundError, Damaged, SlimnbError, KeyError, TypeError):
        shown = "not named yet"
    why = f"another process is training it ({shown})"
    return BusyError(f"run {folder.name[:60]}", why, "Wait for it, then run again.")


class Stopping(ContextDecorator):
    """Within `with stopping:` SIGTERM, SIGUSR1 and SIGINT ask this process to stop: they raise BusyError (status 75).

    What must not be cut in two stands within `with stopping.later():`. There a signal, and any after it, only sets
    `requested`, which a training loop reads at the end of a step; the error comes when the block is left. Python lets
    only the main thread install handlers; elsewhere nothing happens. Blocks may be nested.
    """

    SIGNALS: ClassVar = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self):
        self.requested = False
        self._depth = self._held = 0  # blocks that the main thread is in, and those of `later` among them
        self._pass_on: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if _in_main_thread():
            if self._depth:
                self.check()
            else:
                self.requested, before = False, {number: signal.getsignal(number) for number in self.SIGNALS}
                # A shell starts a job in the background with SIGINT ignored; that is left so.
                self._before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
                for number in self._before:
                    signal.signal(number, self._request)
            self._depth += 1
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        if _in_main_thread():
            self._depth -= 1
            if not self._depth:
                for number, handler in self._before.items():
                    signal.signal(number, handler)
            # What was cut short may have made an error of its own out of ours.
            if kind is None or (not self._depth and issubclass(kind, Exception) and not issubclass(kind, SlimnbError)):
                self.check()

    @contextmanager
    def later(self, pass_on: Callable[[], None] | None = None) -> Iterator[None]:
        """Put a stop off until the block is left, which then raises BusyError; a signal calls `pass_on` at once."""
        with self:
            held, before = _in_main_thread(), self._pass_on
            self._held, self._pass_on = self._held + held, pass_on or before
            try:
                yield
            finally:
                self._held, self._pass_on = self._held - held, before

    def check(self) -> None:
        """Raise BusyError if a stop was requested and nothing puts it off."""
        # Asked again and again: code that catches any error may have swallowed the one of the handler.
        if self.requested and not self._held:
            raise BusyError("stopped", "the process was asked to end", "Run the same command again to go on.",
                            "What was finished is kept.")

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        if self._pass_on is not None:
            self._pass_on()
        self.check()


stopping = Stopping()
"""The one of this process: signals reach the process as a whole."""


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
