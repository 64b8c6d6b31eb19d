"""Parameters: what is refused, with which code, in one line, before torch is imported."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimnb.book.parameters import COMMON, Bool, Choice, Float, Int, Numbers, check_parameters, declaration
from slimnb.errors import SlimnbError

GOOD = {"scale": "smoke", "seed": 0, "seeds": 1, "device": "auto", "data": "auto", "out": ""}
OWN = {
    "lr": Float(0.0, 10.0),
    "steps": Int(1, 10**6),
    "distil": Bool(),
    "net": Choice(("mobilenet_v1", "vgg")),
    "widths": Numbers(1.0, complete=True),
    "sides": Numbers(224, whole=True),
}
OWN_GOOD = {
    "lr": 0.1, "steps": 10, "distil": True, "net": "vgg", "widths": [0.25, 0.5, 1.0], "sides": [128, 224],
}  # fmt: skip


def refused(**changes):
    with pytest.raises(SlimnbError) as caught:
        check_parameters(GOOD | OWN_GOOD | changes, OWN)
    line = str(caught.value)
    assert len(line) <= 240 and "\n" not in line and caught.value.exit_status == 2, line
    return type(caught.value).__name__, line


def test_good_parameters_come_back_unchanged_and_nothing_else_does():
    namespace = GOOD | OWN_GOOD | {"np": np, "_i1": "scale = 1", "In": ["", "x"], "Out": {1: 2}, "f": len}
    assert check_parameters(namespace, OWN) == GOOD | OWN_GOOD


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("ParameterError", {"wdiths": [1.0]}),
        ("ParameterError", {"x" * 500: 1}),
        ("ParameterError", {"Seed": 1}),
        ("ParameterError", {"import os": "os.system('true')"}),
        ("ParameterError", {"lr": "0.1"}),
        ("ParameterError", {"lr": True}),
        ("ParameterError", {"lr": None}),
        ("ParameterError", {"lr": np.float64(0.1)}),
        ("ParameterError", {"steps": 10.0}),
        ("ParameterError", {"steps": True}),
        ("ParameterError", {"steps": np.int64(3)}),
        ("ParameterError", {"distil": "False"}),
        ("ParameterError", {"distil": np.False_}),
        ("ParameterError", {"distil": 0}),
        ("ParameterError", {"seed": 1.5}),
        ("ParameterError", {"seed": False}),
        ("ParameterError", {"scale": 1}),
        ("ParameterError", {"widths": (0.5, 1.0)}),
        ("ParameterError", {"widths": 1.0}),
        ("ParameterError", {"widths": ["0.5", 1.0]}),
        ("ParameterError", {"widths": [True]}),
        ("ParameterError", {"sides": [128.0, 224]}),
        ("ParameterError", {"lr": math.nan}),
        ("ParameterError", {"lr": math.inf}),
        ("ParameterError", {"lr": 0.0}),
        ("ParameterError", {"lr": -0.1}),
        ("ParameterError", {"lr": 10**400}),
        ("ParameterError", {"steps": 0}),
        ("ParameterError", {"steps": -1}),
        ("ParameterError", {"steps": 10**5000}),
        ("ParameterError", {"seeds": 0}),
        ("ParameterError", {"seed": -1}),
        ("ParameterError", {"seed": 2**32}),
        ("ParameterError", {"seed": 2**64}),
        ("ParameterError", {"widths": []}),
        ("ParameterError", {"widths": [0.5, 0.25, 1.0]}),
        ("ParameterError", {"widths": [0.5, 0.5, 1.0]}),
        ("ParameterError", {"widths": [0.0, 1.0]}),
        ("ParameterError", {"widths": [-0.5, 1.0]}),
        ("ParameterError", {"widths": [0.5, 1.25]}),
        ("ParameterError", {"widths": [0.25, math.nan, 1.0]}),
        ("ParameterError", {"widths": [0.25, 0.5]}),
        ("ParameterError", {"scale": "smal"}),
        ("ParameterError", {"net": "resnet"}),
        ("ParameterError", {"data": "cifar10O"}),
        ("ParameterError", {"data": "../elsewhere"}),
        ("ParameterError", {"data": "images/\0"}),
        ("ParameterError", {"out": "a\nb"}),
        ("ParameterError", {"out": "a/" * 150}),
        ("ParameterError", {"device": "cuda:x"}),
        ("ParameterError", {"device": "gpu"}),
    ],
)
def test_bad_parameters_are_refused_by_name(code, changes):
    seen, line = refused(**changes)
    assert seen == code, line
    assert next(iter(changes))[:30] in line


def test_a_typo_is_answered_with_the_nearest_name():
    assert "Did you mean widths?" in refused(wdiths=[1.0])[1]
    assert "scale='small'" in refused(scale="smal")[1]


def test_a_missing_parameter_is_named():
    with pytest.raises(SlimnbError, match="seeds is missing"):
        check_parameters({k: v for k, v in GOOD.items() if k != "seeds"}, {})


@pytest.mark.parametrize(
    "changes", [{"device": "cuda:1"}, {"data": "sets/faces"}, {"seed": 2**32 - 1}, {"lr": 1}]
)
def test_edges_are_accepted(changes):
    expected = GOOD | OWN_GOOD | changes
    assert check_parameters(expected, OWN) == expected


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(name=st.sampled_from([*COMMON, *OWN]), value=ANYTHING)
def test_no_value_whatever_escapes_as_another_error(name, value):
    rule = (COMMON | OWN)[name]
    try:
        rule.check(name, value)
    except SlimnbError as error:
        assert type(error).__name__.startswith("P")
        assert len(str(error)) <= 240 and "\n" not in str(error)
    else:
        assert type(value) in (bool, int, float, str, list)


def test_a_chapter_is_read_without_running_it():
    cell = "scale = 'smoke'  # a comment\nlr = -0.5\nwidths = [0.5, 1.0]"
    code = "raise SystemExit\nChapter.begin('01_x', globals(), lr=Float(closed=True), widths=Numbers(1.0))"
    found = declaration(cell, code)
    assert found.defaults == {"scale": "smoke", "lr": -0.5, "widths": [0.5, 1.0]}
    assert found.rules == {"lr": Float(closed=True), "widths": Numbers(1.0)}
    assert (found.read("lr", "0.25"), found.read("widths", "[1.0]")) == (0.25, [1.0])
    assert found.read("scale", "1") == "1"
    assert math.isnan(found.read("lr", "nan")) and found.read("lr", "open('x')") == "open('x')"


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("lr = 1 / 3", ""),
        ("lr = open('x')", ""),
        ("import os", ""),
        ("a, b = 1, 2", ""),
        ("lr = 1.0", "Chapter.begin('01_x', globals(), lr=Float(high()))"),
        ("lr = 1.0", "Chapter.begin('01_x', globals(), lr=Evil())"),
    ],
)
def test_computation_in_a_declaration_is_refused(cell, code):
    with pytest.raises(SlimnbError) as caught:
        declaration(cell, code)
    assert type(caught.value).__name__ == "ParameterError" and len(str(caught.value)) <= 240


CHAPTER = """# %% tags=["parameters"]
scale = "smoke"
seed = 0
seeds = 1
device = "auto"
data = "auto"
out = ""
lr = 0.1

# %%
chapter = Chapter.begin("01_tiny", globals(), lr=Float())
"""


@pytest.mark.parametrize("arguments", [["-p", "rl", "0.1"], ["-p", "lr", "nan"], ["--scale", "big"]])
def test_the_command_line_refuses_before_torch_is_imported(tmp_path, arguments):
    path = tmp_path / "01_tiny.py"
    path.write_text(CHAPTER)
    program = (
        "import sys\nfrom slimnb.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, "run", str(path), "--out", str(tmp_path / "o" / "x.ipynb")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["2", "False"], done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("slimnb: ParameterError: ")
    assert not (tmp_path / "o").exists()
