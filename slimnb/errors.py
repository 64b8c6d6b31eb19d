"""The errors slimnb raises for bad input, and how they read: a single line."""

from __future__ import annotations

import sys


class SlimnbError(Exception):
    """What was given, what is allowed and what mends it, in one line.

    `what` names the parameter, file or step with the value seen; `why` is the rule it breaks; `fix` the value or call
    that mends it; `state` says what was left untouched, where anything could have been written. Shown without a
    traceback in notebooks and by the command line. `exit_status` is the process's.
    """

    exit_status = 2

    def __init__(self, what: str, why: str, fix: str, state: str = ""):
        self.what, self.why, self.fix, self.state = what, why, fix, state
        super().__init__(f"slimnb: {type(self).__name__}: {what} — {why}. {fix} {state}".strip())

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for its own rendering; a reader needs the line, not our call stack.
        return [str(self)]


class ParameterError(SlimnbError):
    """A parameter, a recipe's field or an argument is none of what is allowed; a subnet does not fit its net."""


class SearchError(SlimnbError):
    """A search or a table of costs cannot answer: a budget out of reach, a choice never seen, a net it cannot price."""


class DataError(SlimnbError):
    """Images, labels or a data set's files are not as they must be."""

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
    """A number is not finite, or statistics are missing, stale or another subnet's."""

    exit_status = 5


class ResourceError(SlimnbError):
    """Memory, disk or a device does not suffice."""

    exit_status = 6


class BusyError(SlimnbError):
    """Another process is at it, or this one was asked to end: try again."""

    exit_status = 75


def exit_with(error: SlimnbError) -> None:
    """Print the error's line on stderr and leave the process with its exit status."""
    print(error, file=sys.stderr)
    raise SystemExit(error.exit_status)
