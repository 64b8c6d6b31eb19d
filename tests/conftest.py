"""What holds for all tests: no figure stays open, long tests begin first, sweeps run when they are asked for."""

import sys

import pytest


def pytest_collection_modifyitems(config, items):
    """Chapters come first: a long test that begins last leaves the other workers idle."""
    items.sort(key=lambda item: item.get_closest_marker("chapter") is None)
    if "sweep" not in config.option.markexpr:
        sweep = [item for item in items if item.get_closest_marker("sweep")]
        config.hook.pytest_deselected(items=sweep)
        items[:] = [item for item in items if not item.get_closest_marker("sweep")]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run store that the tests of a module share: what one trains, the others load."""
    from slimnb.runs.store import RunStore  # imports torch, which not every test needs

    folder = tmp_path_factory.mktemp("store")
    return RunStore(folder / "runs", folder / "results")
