"""When a chapter is executed again: for a change of what its code reaches, and for no other."""

import re
import shutil
from pathlib import Path

import pytest

from slimnb.book import notebook
from slimnb.book.notebook import content_key

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = "04_pss_net"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the library and the chapter."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(ROOT / "slimnb", folder / "slimnb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "notebooks" / f"{CHAPTER}.py", folder)
    return folder


@pytest.fixture
def changes(copied, monkeypatch):
    """Tells whether a substitution in a file, found once or more, changes the chapter's key."""
    monkeypatch.setattr(notebook, "PACKAGE", copied / "slimnb")

    def counts(name: str, pattern: str, text: str) -> bool:
        path, chapter = copied / name, copied / f"{CHAPTER}.py"
        before, source = content_key(chapter), path.read_text()
        changed = re.sub(pattern, text, source, count=1, flags=re.M | re.S)
        assert changed != source, "nothing to change"
        path.write_text(changed)
        try:
            return content_key(chapter) != before
        finally:
            path.write_text(source)

    return counts


@pytest.mark.parametrize("name", [
    "train/loop.py", "train/experiment.py", "nets/mobilenet.py", "papers/pss_net/method.py", "book/chapter.py",
    "runs/store.py", "__init__.py"])
def test_a_docstring_or_a_comment_executes_nothing_again(changes, name):
    assert not changes(f"slimnb/{name}", '"""', '"""Other words: ')
    if "def " in (ROOT / "slimnb" / name).read_text():
        assert not changes(f"slimnb/{name}", r'^( +)"""(?=\w)', r'\1"""Other words: ')
    assert not changes(f"slimnb/{name}", r"\A", "# a comment\n")


@pytest.mark.parametrize(("name", "pattern", "text"), [
    ("slimnb/train/loop.py", r"^def (\w+)\((.*?)\n    (\w+ = )", r"def \1(\2\n    print()\n    \3"),
    ("slimnb/papers/pss_net/method.py", r"^(    def \w+\(.*?)(\n        return )", r"\1\n        print()\2"),
    ("slimnb/papers/pss_net/recipes.py", r"\Z", "\nMORE = 1\n"),
    ("slimnb/papers/slimmable/method.py", r"\Z", "\nMORE = 1\n"),  # the method of recipes that are reached
    ("slimnb/nets/mobilenet.py", r"\Z", "\nMORE = 1\n"),  # nets are named by a text
    ("slimnb/book/execute.py", "startup_timeout=120", "startup_timeout=60"),
    (f"{CHAPTER}.py", r"\Z", "\n# %%\nprint(1)\n"),
])
def test_a_statement_that_is_reached_executes_it_again(changes, name, pattern, text):
    assert changes(name, pattern, text)


@pytest.mark.parametrize(("name", "pattern", "text"), [
    ("slimnb/papers/deps/method.py", r"\Z", "\nprint(1)\n"),
    ("slimnb/papers/ds_net/recipes.py", r"\Z", "\nMORE = 1\n"),
    ("slimnb/__main__.py", r"\Z", "\nprint(1)\n"),
    ("slimnb/cost/table.py", r"\Z", "\ndef unused():\n    return 1\n"),
    (f"{CHAPTER}.py", r"^# # PSS-Net", "# # PSS-Net, in other words"),
])
def test_what_is_not_reached_does_not(changes, name, pattern, text):
    assert not changes(name, pattern, text)


def test_the_comments_of_a_definition_that_the_chapter_prints_count(changes):
    first_line = r"(^class PrioritizedSubnetSampling.*?    def plan\(.*?\n)(        \w)"
    assert changes("slimnb/papers/pss_net/method.py", first_line, r"\1        # why\n\2")
