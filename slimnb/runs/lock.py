"""One writer per folder, and signals that ask it to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


class Preemption:
    """Within `with`, SIGTERM and SIGUSR1 only set `requested`, which a training loop reads at the end of a step.

    Python lets only the main thread install handlers; elsewhere this does nothing. A second signal changes nothing, so
    a save under way completes.
    """

    def __init__(self):
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
