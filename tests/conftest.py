"""What holds for all tests: no figure stays open, and the long tests begin first."""

import sys

import pytest


def pytest_collection_modifyitems(items):
    """Chapters come first: a long test that begins last leaves the other workers idle."""
    items.sort(key=lambda item: item.get_closest_marker("chapter") is None)


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
