"""The names at the top of slimnb: each can be imported, is documented, and shows in editors; none costs an import."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import slimnb
from slimnb.runs.definitions import Reader

FOLDER = Path(slimnb.__file__).parent
STUB = Reader({"slimnb": FOLDER}).module("slimnb").imports


@pytest.mark.parametrize("name", slimnb.__all__)
def test_a_public_name_is_found_documented_and_where_the_stub_says(name):
    thing = getattr(slimnb, name)
    home = importlib.import_module(STUB[name].rpartition(".")[0])
    assert getattr(home, name) is thing and thing.__module__ == home.__name__
    assert len(thing.__doc__.split()) >= 4


def test_there_are_few_of_them_and_all_are_listed():
    assert len(slimnb.__all__) <= 35
    assert dir(slimnb) == slimnb.__all__ == sorted(set(STUB) - {"lazy_loader"})
    with pytest.raises(AttributeError, match="Nett"):
        slimnb.Nett  # noqa: B018


def test_the_stub_and_the_claims_are_part_of_what_is_installed():
    settings = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["package-data"]["slimnb"] == ["*.pyi", "nn/*.c", "papers/*/claims.toml"]


def test_nothing_heavy_is_imported_with_the_package():
    program = "import sys, slimnb; dir(slimnb); print({'torch', 'numpy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
