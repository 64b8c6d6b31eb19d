"""The one kind of error slimnb raises for bad input, and how it reads: a single line."""

from __future__ import annotations

import sys

EXIT_CODES = {"P": 2, "S": 2, "D": 3, "C": 4, "B": 4, "N": 5, "R": 6, "K": 75}
"""Exit status by family: P parameters, S search and subnets, D data, C checkpoints and run store, B book,
N numerics, R resources (memory, disk, device), K busy or pre-empted (try again)."""


class SlimnbError(Exception):
    """What was given, what is allowed and what mends it, in one line.

    `code` is a family letter and two digits ("P03"); `what` names the parameter, file or step with the value
    seen; `why` is the rule it breaks; `fix` the value or call that mends it; `state` says what was left
    untouched. Shown without a traceback in notebooks and by the command line.
    """

    def __init__(self, code: str, what: str, why: str, fix: str, state: str = "Nothing was written."):
        self.code, self.what, self.why, self.fix, self.state = code, what, why, fix, state
        super().__init__(f"slimnb: error SNB-{code}: {what} — {why}. {fix} {state}".strip())

    @property
    def exit_code(self) -> int:
        """Process exit status for this error's family."""
        return EXIT_CODES[self.code[0]]

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for its own rendering; a reader needs the line, not our call stack.
        return [str(self)]


def exit_with(error: SlimnbError) -> None:
    """Print the error's line on stderr and leave the process with its exit status."""
    print(error, file=sys.stderr)
    raise SystemExit(error.exit_code)
