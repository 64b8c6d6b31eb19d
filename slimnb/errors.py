"""The errors that slimnb raises for bad input. Each reads as a single line."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """Return `text` with whatever is not printable escaped: control characters, line ends, bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class SlimnbError(Exception):
    """An error in one line: what was passed, which rule it breaks, and how to mend it.

    `what` names the parameter, file or step with its value. `why` is the rule it breaks. `fix` is the value or call
    that mends it. `state` says what was left untouched, if anything could have been written. Notebooks and the command
    line show the line without a traceback; in it, what is not printable is escaped. `exit_status` is the exit status
    of the process.
    """

    exit_status = 2

    def __init__(self, what: str, why: str, fix: str, state: str = ""):
        self.what, self.why, self.fix, self.state = what, why, fix, state
        super().__init__(printable(f"slimnb: {type(self).__name__}: {what} — {why}. {fix} {state}".strip()))

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for its own rendering; a reader needs the line, not our call stack.
        return [str(self)]


class ParameterError(SlimnbError):
    """A parameter, a recipe's field or an argument is not allowed, or a subnet does not fit its net."""


class SearchError(SlimnbError):
    """A search or a table of costs cannot answer: a budget is out of reach, or a choice has no score or no price."""


class DataError(SlimnbError):
    """Images, labels or the files of a data set are not as they must be."""

    exit_status = 3


class MissingDataError(DataError):
    """The data set is not on this machine."""


class StoreError(SlimnbError):
    """A run, a checkpoint or a result cannot be found, read, believed or continued."""

    exit_status = 4


class BookError(SlimnbError):
    """A chapter could not be read, or its run is not whole."""

    exit_status = 4


class NumericsError(SlimnbError):
    """A number is not finite, or statistics are missing, stale or those of another subnet."""

    exit_status = 5


class ResourceError(SlimnbError):
    """There is too little memory or disk, or no such device."""

    exit_status = 6


class BusyError(SlimnbError):
    """Another process is at work on this, or the process was asked to end. Try again."""

    exit_status = 75


def exit_with(error: SlimnbError) -> None:
    """Print the error's line on stderr and leave the process with its exit status."""
    print(error, file=sys.stderr)
    raise SystemExit(error.exit_status)
