"""Random subnets of a given cost against all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from slimnb.cost.macs import count_macs
from slimnb.cost.table import CostTable
from slimnb.errors import SlimnbError
from slimnb.nets.mobilenet import MobileNetV1
from slimnb.search.random_paths import cumulative, inverse_cdf, random_under
from slimnb.search.trellis import Trellis
from slimnb.subnet import SearchSpace

SPACE = SearchSpace(((8, 16), (8, 24, 32, 40), (1, 2, 3), (5, 6, 7)))


def trellis_of(seed: int) -> Trellis:
    """Costs that neither grow with the widths nor are whole numbers."""
    rng = np.random.default_rng(seed)
    counts = [len(choices) for choices in SPACE.widths]
    return Trellis.of([rng.uniform(1, 10, pair) for pair in itertools.pairwise(counts)])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("least", [0.8, 0.95])
def test_every_subnet_in_the_interval_is_equally_likely(share, least):
    trellis = trellis_of(2)
    every = np.array(list(itertools.product(*map(range, trellis.counts))))
    costs = np.sort(trellis.cost(every))
    budget = np.quantile(costs, share) * 1.001
    fits = (trellis.cost(every) >= least * budget) & (trellis.cost(every) <= budget)
    inside = set(map(str, SPACE.at(every[fits])))
    n = 400 * len(inside)
    drawn = [str(subnet) for subnet in random_under(SPACE, trellis, budget, np.random.default_rng(0), n, least)]
    found = {name: drawn.count(name) for name in set(drawn)}
    assert found.keys() == inside
    assert_allclose(list(found.values()), 400, atol=100)  # 5 standard deviations


def test_one_choice_alone_and_the_two_ends():
    trellis = trellis_of(3)
    for end, budget in ((0, trellis.cheapest), (1, trellis.dearest * 1.01)):
        (subnet,) = random_under(SPACE, trellis, budget, np.random.default_rng(0), least=0.9999 if end == 0 else 0.98)
        assert subnet == SPACE.at(trellis.ends[end : end + 1])[0]


def test_platforms_of_the_paper():
    net = MobileNetV1(100, 32, 1.5)
    space = net.space([round(0.2 + 0.1 * i, 1) for i in range(14)])
    trellis = Trellis.of(CostTable.macs(net, space).chain())
    for mult in (0.25, 1.0):
        budget = count_macs(net, net.uniform(mult))
        subnets = random_under(space, trellis, budget, np.random.default_rng(1), 4)
        assert len(set(subnets)) == 4 and all(space.contains(subnet) for subnet in subnets)
        assert all(0.98 * budget <= count_macs(net, subnet) <= budget for subnet in subnets)
        again = random_under(space, trellis, budget, np.random.default_rng(1), 4)
        assert again == subnets


def test_costs_that_no_subnet_has_are_refused(monkeypatch):
    trellis = trellis_of(4)
    for budget in (trellis.cheapest * 0.99, trellis.dearest * 1.1):
        with pytest.raises(SlimnbError, match=r"SearchError: budget .* subnets cost .* to "):
            random_under(SPACE, trellis, budget, np.random.default_rng(0))
    every = np.array(list(itertools.product(*map(range, trellis.counts))))
    costs = np.sort(trellis.cost(every))
    gap = np.diff(costs).argmax()
    monkeypatch.setattr("slimnb.search.random_paths.TRIES", 20_000)
    with pytest.raises(SlimnbError, match="SearchError: 0 of 1 subnets after 20,480 tries"):
        low, high = costs[gap] * 1.0001, costs[gap + 1] * 0.9999
        random_under(SPACE, trellis, high, np.random.default_rng(0), least=low / high)


def test_inverse_cdf_takes_each_choice_with_its_probability():
    p = np.array([[0.0, 0.2, 0.0, 0.8, 0.0], [0.1, 0.1, 0.1, 0.1, 0.6]])
    cdf = cumulative(p)
    assert (cdf[:, -1] == 1).all()
    u = np.stack([np.linspace(0, 1, 1000, endpoint=False)] * 2, 1)
    index = inverse_cdf(cdf, u)
    for row in range(2):
        assert_allclose(np.bincount(index[:, row], minlength=5) / 1000, p[row], atol=0.0011)
    assert inverse_cdf(cdf, np.nextafter([1.0, 1.0], 0)).tolist() == [3, 4]
