"""What a test says of an error: its class, and that it is one line of at most 240 characters."""

import pytest

from slimnb.errors import SlimnbError


def fails(code: str, words: str = ""):
    """Expect a SlimnbError of class `code` in one line that has the pattern `words` in it."""
    return pytest.raises(SlimnbError, match=rf"^slimnb: {code}: (?=[^\n]*{words})[^\n]{{1,220}}\Z")


def refused(code: str, call, *args, words: str = "", **kwargs) -> str:
    """The line of the error that `call` must raise."""
    with fails(code, words) as caught:
        call(*args, **kwargs)
    return str(caught.value)
