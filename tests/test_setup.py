"""The set-up says the same thing everywhere, and the library keeps its order and its safety rules."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIBRARY = sorted((ROOT / "slimnb").rglob("*.py"))


def test_conda_makes_the_same_environment():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    named = [item for item in conda["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in conda["dependencies"] if isinstance(item, dict)]
    assert {re.split(r"[ <>=]", item)[0] for item in named} == {"python", "pip", "make", "git"}
    python = next(item for item in named if item.startswith("python"))
    assert python.replace(" ", "") == f"python{PROJECT['requires-python']}"
    extras = re.search(r"^EXTRAS := (\S+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert pip == ["--constraint constraints.txt", f"--editable .[{extras}]", "--editable ./examples/seventh_paper"]
    assert set(extras.split(",")) == set(PROJECT["optional-dependencies"])


def pins() -> dict[str, str]:
    """Version by normalised name, of each line of constraints.txt, which holds names and versions only."""
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    return {_plain(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def test_every_dependency_is_pinned_to_a_version_it_allows():
    pinned = pins()
    wanted = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[_plain(requirement.name)]), requirement


def test_every_pin_serves_every_python_we_promise():
    for name, version in pins().items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a pin of another platform
        allowed = SpecifierSet(found.metadata.get("Requires-Python") or "")
        assert found.version != version or allowed.contains("3.11.0"), f"{name} {version} needs {allowed}"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_citation_names_the_five_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"title", "message", "authors"} <= set(citation)
    assert len(citation["references"]) == 5
    for paper in citation["references"]:
        assert {"type", "title", "authors"} <= set(paper)
        assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", text, re.M)[1].split()
    shown = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True)
    assert [line.split()[1] for line in shown.stdout.splitlines()] == targets
    assert {"book", "test", "lab", "figures", "lint", "help", "clean"} <= set(targets)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("exit 1", "needs Python 3.11 or newer"),
        ("case $2 in *ensurepip*) exit 1;; esac", "lacks its venv module"),
    ],
)
def test_an_unfit_python_is_refused_in_one_line(tmp_path, answer, words):
    for name in ("python", "python3", *(f"python3.{minor}" for minor in range(9, 16))):
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' && exit 0\n{answer}\n")
        fake.chmod(0o755)
    (tmp_path / "examples/seventh_paper").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "examples/seventh_paper/pyproject.toml"):
        (tmp_path / name).write_text("x")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(ROOT / "tools/setup.sh"), ".venv", "test"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_runs_the_command_of_the_readme():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)


def test_imports_go_one_way_without_circles():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("room", [path for path in (ROOT / "slimnb").rglob("*") if path.is_dir()
                                  and path.name != "__pycache__"], ids=lambda path: path.name)
def test_a_room_has_at_most_ten_files(room):
    assert len([path for path in room.glob("*.py") if path.stem != "__init__"]) <= 10


# plugins.py looks a module up in a fixed table; nothing else picks code by its name.
BY_NAME = {"plugins.py"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_NAMES = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "numpy.load",
    "np.load",
}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy"}


@pytest.mark.parametrize("path", [*LIBRARY, *sorted((ROOT / "tools").glob("*.py"))], ids=lambda p: p.name)
def test_nothing_is_unpickled_or_evaluated(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN_CALLS | FORBIDDEN_NAMES, f"line {node.lineno}: {name}"
            assert name != "importlib.import_module" or path.name in BY_NAME, f"line {node.lineno}: {name}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.partition(".")[0] for alias in node.names}
            names |= {(getattr(node, "module", None) or "").partition(".")[0]}
            assert not names & FORBIDDEN_MODULES, f"line {node.lineno}"


def test_the_readmes_result_table_is_the_committed_results():
    checked = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=ROOT, check=False)
    assert checked.returncode == 0, "run tools/readme.py"


def test_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(([^):]+)\)", text):
        assert (ROOT / path).exists(), path
    assert "make book" in text and "make test" in text
