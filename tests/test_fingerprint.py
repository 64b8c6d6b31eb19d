"""The code fingerprint reacts to what runs, and to nothing else; the machine's tells no secrets."""

import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from slimnb.errors import SlimnbError
from slimnb.fingerprint import code_fingerprint, machine_fingerprint

SOURCES = {
    "__init__.py": "from book.a import f\n",
    "a.py": '"""Doc."""\nfrom book.b import g\nimport os\n\ndef f(x):\n    """Doc."""\n    return g(x)\n',
    "b.py": "def g(x):\n    from .deep.c import h\n    return h(x) + 1\n",
    "deep/c.py": "from ..d import K\n\ndef h(x):\n    return K * x\n",
    "d.py": "K = 2\n",
    "alone.py": "raise RuntimeError('imported')\n",
    "errors.py": "MESSAGE = 'neutral'\n",
    "taker.py": "from book import f\n",
    "loner.py": "from book import d\n",
}


@pytest.fixture
def book(tmp_path):
    """Writes a small package, some of its files changed, and returns a function's fingerprint."""

    def fingerprint(modules=("book.a",), by_itself=(), **changes):
        root = tmp_path / "book"
        changed = {name.replace("__", "/") + ".py": text for name, text in changes.items()}
        for name, text in (SOURCES | changed).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return code_fingerprint(modules, root, by_itself)

    return fingerprint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a", SOURCES["a.py"].replace('"""Doc."""', '"""Other words."""')),
        ("a", SOURCES["a.py"].replace('    """Doc."""\n', "")),
        ("a", "# a comment\n" + SOURCES["a.py"].replace("g(x)", "g(  # why\n        x\n    )")),
        ("a", SOURCES["a.py"].replace("import os\n", "import os\n'said of os'\n")),
        ("alone", "raise RuntimeError('changed')\n"),
        ("errors", "MESSAGE = 'mended'\n"),
    ],
)
def test_what_changes_nothing_does_not_count(book, name, text):
    before = book()
    assert book(**{name: text}) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a", "return g(x)", "return g(x) + 0"),
        ("a", "def f(x)", "def f(x=1)"),
        ("b", "+ 1", "+ 2"),
        ("b", "+ 1", "+ 1.0"),
        ("deep__c", "K * x", "x * K"),
        ("d", "2", "'2'"),
        ("d", "2", "None"),
    ],
)
def test_what_runs_counts_at_any_depth(book, name, old, new):
    before = book()
    text = SOURCES[name.replace("__", "/") + ".py"]
    assert book(**{name: text.replace(old, new)}) != before


def test_f_strings_count_by_what_they_say(book):
    same = [book(["d"], d=f"K = {text}\n") for text in ("f'a{x}b{y}c'", "'a' f'{x}b' f'{y}' 'c'")]
    assert same[0] == same[1]
    others = (
        "f'A{x}b{y}c'",
        "f'a{x}B{y}c'",
        "f'a{x}b{y}C'",
        "f'a{x}b{z}c'",
        "f'a{x}b{y!r}c'",
        "f'a{x}b{y:3}c'",
    )
    assert same[0] not in [book(["d"], d=f"K = {text}\n") for text in others]


def test_order_and_naming_of_modules_do_not_count(book):
    assert book(["book.a", "book.d"]) == book(["d", "a", "book.b"])


def test_init_counts_only_when_a_name_is_taken_from_it(book, tmp_path):
    before = [book([name]) for name in ("a", "taker", "loner")]
    (tmp_path / "book" / "__init__.py").write_text("from book.a import f\nX = 1\n")
    after = [code_fingerprint([name], tmp_path / "book") for name in ("a", "taker", "loner")]
    assert [x == y for x, y in zip(before, after, strict=True)] == [True, False, True]


def test_module_alone_counts_without_its_imports(book):
    before = book(["d"], ["book.a"])
    assert book(["d"], ["book.a"], deep__c="K = 1\n") == before != book(["d"])
    assert book(["d"], ["book.a"], a=SOURCES["a.py"] + "X = 1\n") != before


def test_nothing_is_imported(book):
    assert book(["book.alone"])
    assert not any(name.split(".")[0] == "book" for name in sys.modules)


def test_unknown_module_is_one_line(book):
    with pytest.raises(SlimnbError, match=r"SNB-P10: module book\.nowhere"):
        book(["book.nowhere"])


def test_same_on_every_python(book):
    # Each construct here has changed in ast, its dump or its unparse between 3.11 and 3.14. The value
    # was taken once; another Python that disagrees would call every stored result stale.
    text = (
        "@d\nclass A(B, k=1): ...\n"
        "def f(a, /, *b, c=1, **k) -> int:\n    return f'{a!r:>{c}} {{}} {k=}' 'x' f'{b}'\n"
        "match x:\n    case [1, *_] | {'k': None, **r} if (y := 1): pass\n"
        "async def g():\n    async with a as b, c: await b\n    return [i async for i in b]\n"
        "try: pass\nexcept* (A, B): x[1:2, ...] = -1, 1e10, 2j, b'b', u'u'\n"
        "lambda *, q=None: {**q, 'a': (yield)}\n"
    )
    expected = "e836af3c4014044f1f6184a74a5b02c29c9413b2c92019ed54871b5c8704243a"
    assert book(["d"], d=text) == expected


def test_package_itself_can_be_fingerprinted():
    import slimnb.errors

    folder = Path(slimnb.errors.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert len(code_fingerprint(names)) == 64


def test_machine_is_json_and_stable():
    from slimnb.durable import from_json, to_json

    found = machine_fingerprint("cpu")
    assert found == machine_fingerprint(torch.device("cpu")) == from_json(to_json(found).encode())
    assert found["torch"] == torch.__version__


def test_machine_reacts_to_threads_and_precision():
    before, threads = machine_fingerprint(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert machine_fingerprint() == before | {"threads": threads + 1}
    finally:
        torch.set_num_threads(threads)


def test_machine_tells_no_secrets(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-value")
    monkeypatch.setenv("MKL_CBWR", "/home/somebody/x y")
    text = repr(machine_fingerprint())
    assert "s3cr3t" not in text and "/" not in text and os.path.expanduser("~") not in text
    assert socket.gethostname() not in text
