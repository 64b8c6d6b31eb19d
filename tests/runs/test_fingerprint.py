"""The code fingerprint reacts to what runs, and to nothing else; the machine's tells no secrets."""

import os
import socket
import sys

import pytest
import torch

from slimnb.errors import SlimnbError
from slimnb.runs.definitions import reached
from slimnb.runs.fingerprint import code_fingerprint, machine_fingerprint

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

    def fingerprint(roots=("book.a.f",), **changes):
        root = tmp_path / "book"
        changed = {name.replace("__", "/") + ".py": text for name, text in changes.items()}
        for name, text in (SOURCES | changed).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return code_fingerprint(roots, {"book": root})

    return fingerprint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a", SOURCES["a.py"].replace('"""Doc."""', '"""Other words."""')),
        ("a", SOURCES["a.py"].replace('    """Doc."""\n', "")),
        ("a", "# a comment\n" + SOURCES["a.py"].replace("g(x)", "g(  # why\n        x\n    )")),
        ("a", SOURCES["a.py"].replace("import os\n", "import os\n'said of os'\n")),
        ("a", SOURCES["a.py"].replace("def f(x)", "def f(x: Unknown) -> int")),
        ("a", SOURCES["a.py"].replace("return", "if x is None:\n        raise E('a')\n    return")),
        ("a", SOURCES["a.py"] + "UNUSED = 1\n"),
        ("alone", "raise RuntimeError('changed')\n"),
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
    same = [book(["book.d"], d=f"K = {text}\n") for text in ("f'a{x}b{y}c'", "'a' f'{x}b' f'{y}' 'c'")]
    assert same[0] == same[1]
    others = (
        "f'A{x}b{y}c'",
        "f'a{x}B{y}c'",
        "f'a{x}b{y}C'",
        "f'a{x}b{z}c'",
        "f'a{x}b{y!r}c'",
        "f'a{x}b{y:3}c'",
    )
    assert same[0] not in [book(["book.d"], d=f"K = {text}\n") for text in others]


def test_moving_a_definition_to_another_file_changes_nothing(book):
    before = book(["book.a.f"])
    moved = {"a": "from book.new import f\n",
             "new": "import book.d as dd\nfrom book.b import g\n\ndef f(x):\n    return g(x)\n"}
    assert book(["book.new.f"], **moved) == book(["book.a.f"], **moved) == before


def test_of_a_module_only_what_is_reached_counts(book):
    before = book(["book.a.f"])
    assert book(["book.a.f"], d="K = 2\nOTHER = 3\n") == before
    assert book(["book.a.f"], d="K = 2\nprint('at import')\n") != before
    assert book(["book.a"], a=SOURCES["a.py"] + "def other():\n    pass\n") != book(["book.a"])


def test_a_module_that_is_passed_on_counts_whole(book):
    user = "from book import d\n\ndef f(x):\n    return x(d)\n"
    assert book(["book.a.f"], a=user) != book(["book.a.f"], a=user, d="K = 2\nL = 1\n")
    user = user.replace("x(d)", "x(d.K)")
    assert book(["book.a.f"], a=user) == book(["book.a.f"], a=user, d="K = 2\nL = 1\n")


METHODS = """
class Base:
    lr: float = .1
    def plan(self):
        return self.half()
    def half(self):
        return K
    def other(self):
        return 1

class Derived(Base):
    def half(self):
        return 2 * super().half() + self.extra()
    def extra(self):
        return 3

K = 2
"""


@pytest.mark.parametrize(("old", "new", "counts"), [
    ("lr: float = .1", "lr: float = .2", False), ("return 1", "return 0", False), ("return 3", "return 0", True),
    ("K = 2", "K = 1", True), ("return self.half()", "return 1", True), ("return K", "return 1", True)])
def test_a_method_counts_with_what_it_calls_on_itself(book, old, new, counts):
    roots = ["book.d.Derived.plan", "book.d.Derived.half"]
    assert (book(roots, d=METHODS) != book(roots, d=METHODS.replace(old, new))) == counts


def test_names_of_a_package_that_are_imported_on_first_use_are_read_from_its_stub(book, tmp_path):
    book()
    (tmp_path / "book" / "__init__.py").write_text("def __getattr__(name): ...\n")
    (tmp_path / "book" / "__init__.pyi").write_text("from .d import K as K\n")
    found = reached(["book.taker"], {"book": tmp_path / "book"})
    assert not any(":K" in name for name in found)
    (tmp_path / "book" / "taker.py").write_text("from book import K\nTWICE = 2 * K\n")
    assert "book.d:K" in reached(["book.taker"], {"book": tmp_path / "book"})


def test_nothing_is_imported(book):
    assert book(["book.alone"])
    assert not any(name.split(".")[0] == "book" for name in sys.modules)


def test_unknown_module_is_one_line(book):
    with pytest.raises(SlimnbError, match=r"ParameterError: book\.nowhere"):
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
    expected = "d8fefa9840ade5c5a4ec2d14c44edf55d65ebee75d36acb5dbfd12c2a8c6c38d"
    assert book(["book.d"], d=text) == expected


def test_every_recipe_of_the_package_can_be_fingerprinted():
    found = reached(["slimnb.train.loop.train", "slimnb.nets.vgg.VGG"])
    assert {"slimnb.train.loop:train_step", "slimnb.nn.layers:SlimmableConv2d", "slimnb.nets.vgg:VGG"} <= found.keys()
    assert not any(name.startswith(("torch", "slimnb.nets.resnet")) for name in found)
    assert len(code_fingerprint([reached])) == 64


def test_machine_is_json_and_stable():
    from slimnb.runs.files import from_json, to_json

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
