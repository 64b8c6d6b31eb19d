"""Library code as a chapter prints it: at the left margin, without docstrings, valid Python."""

import ast
import contextlib
import functools
import inspect
import sys

import pytest

from slimnb.book.chapter import source
from slimnb.book.notebook import PRINTERS
from slimnb.errors import ParameterError
from slimnb.runs.definitions import Reader, reached, shown
from slimnb.train import loop

TEXT = '''
    @functools.cache
    async def outer(x,
                    y="ä"):
        """One line, with ε."""
        def inner():  # a comment stays
            """Several

    lines, one of them left of the margin."""

            # why
            return """a text
that begins at the margin"""
        def nothing(): "only a docstring"
        class Empty:
            """Says something."""  # noqa
        def two(): "doc"; return 1
        if x:
            "a text that is no docstring"
        return inner, Empty
'''.strip("\n")
SHOWN = '''
@functools.cache
async def outer(x,
                y="ä"):
    def inner():  # a comment stays
        # why
        return """a text
that begins at the margin"""
    def nothing(): ...
    class Empty:
        ...  # noqa
    def two(): return 1
    if x:
        "a text that is no docstring"
    return inner, Empty
'''.strip("\n")


class Sample:
    """A class."""

    size = 3

    @functools.lru_cache  # noqa: B019
    @contextlib.contextmanager
    def method(self, x):
        """A method."""
        # one by one
        yield from x


def test_docstrings_go_and_all_else_stays():
    assert shown(TEXT) == SHOWN
    assert shown(SHOWN) == SHOWN
    ast.parse(SHOWN)


def test_lines_of_a_method_keep_their_indentation_to_each_other():
    pytest.importorskip("IPython")
    method = ["@functools.lru_cache  # noqa: B019", "@contextlib.contextmanager", "def method(self, x):",
              "    # one by one", "    yield from x"]
    assert source(Sample.method).data.splitlines() == ["```python", *method, "```"]
    both = source(Sample, Sample.method).data.splitlines()
    assert both[1:5] == ["class Sample:", "    size = 3", "", f"    {method[0]}"] and both[-6:-1] == method


def test_what_has_no_python_source_is_refused():
    for thing in (len, 3):
        with pytest.raises(ParameterError, match="has no Python source"):
            source(thing)


def test_every_definition_of_the_library_can_be_shown():
    """None of its docstrings is left, and it computes what it did."""
    for name in sorted(sys.modules):
        if name.startswith("slimnb."):
            text = inspect.getsource(sys.modules[name])
            before, after = ast.parse(text), ast.parse(shown(text))
            for node in ast.walk(before):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node):
                    node.body = node.body[1:] or [ast.Expr(ast.Constant(...))]
            assert ast.dump(before) == ast.dump(after), name


def test_a_chapters_key_counts_what_is_printed():
    assert source.__name__ in PRINTERS
    reader = Reader({"slimnb": inspect.getfile(loop).partition("train")[0]})
    for thing in (loop.train, Reader.reached, reached):
        printed = reader.source(f"{thing.__module__}.{thing.__qualname__}")
        assert printed == shown(inspect.getsource(thing))
