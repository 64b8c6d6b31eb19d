"""Rounding, subnets as values, and search spaces against plain enumeration."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import fails

from slimnb.subnet import SearchSpace, Subnet, elementwise_max, make_divisible, scaled

widths_ = st.lists(st.integers(0, 2000), min_size=1, max_size=6).map(tuple)


# -- rounding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "rounded"), (
    (1, 8), (8, 8), (11, 16), (11.9, 16), (12, 16), (16, 16), (19.9, 24), (20, 24), (24, 24), (28, 32),
    (35, 32), (36, 40), (60, 64), (448, 448), (33.6, 32), (22.4, 24), (13.3, 16), (8.9, 16), (8.8, 8)))
def test_make_divisible_table(value, rounded):
    assert make_divisible(value) == rounded


def test_a_multiplier_is_the_decimal_it_prints_as():
    assert scaled(160, 0.525) == 88  # 84 is half way between 80 and 88, and half way goes up
    assert scaled(160, 1 - 0.025 * 19) == 80  # 0.52499...: the trap a computed grid falls into
    assert scaled(160, round(1 - 0.025 * 19, 3)) == 88
    assert scaled(10, 0.3, "floor") == 3  # 10 * 0.3 is 3.0000000000000004 or 2.9999..., by luck, in binary
    assert scaled(100, 0.29, "floor") == 29 and int(100 * 0.29) == 28


@given(st.fractions(Fraction(1, 100), 5000), st.sampled_from((4, 8, 16)))
def test_make_divisible_is_a_near_multiple(value, divisor):
    rounded = make_divisible(value, divisor, divisor)
    assert rounded % divisor == 0 and rounded >= divisor
    assert rounded >= Fraction(9, 10) * value
    assert rounded <= max(divisor, value + divisor * Fraction(3, 2))
    if abs(rounded - value) > Fraction(divisor, 2):  # only the floor or the 10 % rule move it that far
        assert rounded == divisor or rounded - divisor < Fraction(9, 10) * value


@given(st.integers(1, 2048), st.integers(1, 300), st.integers(1, 300))
def test_scaling_is_monotone_and_exact(channels, a, b):
    a, b = sorted((a / 100, b / 100))
    for rounding in ("divisible", "floor"):
        assert scaled(channels, a, rounding) <= scaled(channels, b, rounding)
    assert scaled(channels, a, "floor") == math.floor(channels * Fraction(round(a * 100), 100))


# -- subnets ---------------------------------------------------------------------------------------------


@given(widths_, widths_, widths_, st.none() | st.integers(1, 512))
def test_json_round_trip_and_hash(widths, depths, kernels, resolution):
    subnet = Subnet(widths, depths, kernels, resolution)
    again = Subnet.from_json(json.loads(json.dumps(subnet.to_json())))
    assert again == subnet and hash(again) == hash(subnet) and {subnet: 1}[again] == 1
    assert Subnet(list(widths), list(depths), list(kernels), resolution) == subnet


def test_text_is_short_and_tells_subnets_apart():
    assert str(Subnet((8, 16))) == "8-16"
    assert str(Subnet((8, 16), (2,), (3, 0), 128)) == "8-16/2/3-0@128"


@pytest.mark.parametrize("fields", (
    *({"widths": widths} for widths in ((8.0,), (-8,), (True,), (math.nan,), (np.int64(8),), 8, "8", None)),
    *({"resolution": pixels} for pixels in (0, -32, True, 32.0, "32", math.nan)),
    {"depths": ("2",)}, {"kernels": (3.0,)}, {"widths": (8,) * 999 + (-1,)}))
def test_bad_subnets(fields):
    with fails("ParameterError"):
        Subnet(**{"widths": (8,)} | fields)


@pytest.mark.parametrize("data", (None, {}, [8], {"width": [8]}, {"widths": [8], "m": 1}))
def test_bad_json(data):
    with fails("ParameterError"):
        Subnet.from_json(data)


# -- spaces ----------------------------------------------------------------------------------------------


def ofa_space(kernels: tuple[int, ...]) -> SearchSpace:
    """Once-for-all's MobileNetV3: 5 stages of 2 to 4 blocks, each of any kernel and expansion 3, 4 or 6."""
    blocks = 20
    return SearchSpace(widths=((72, 96, 144),) * blocks, depths=((2, 3, 4),) * 5, kernels=(kernels,) * blocks,
                       block_units=tuple((unit,) for unit in range(blocks)))


def test_sizes_of_the_papers_spaces():
    assert ofa_space((3, 5, 7)).size == (9**2 + 9**3 + 9**4) ** 5
    assert f"{ofa_space((3, 5, 7)).size:.2e}" == "2.18e+19"
    assert ofa_space((7,)).size == 117**5 == 21_924_480_357  # DepS searches without elastic kernels
    assert SearchSpace(((8, 16),) * 3, tied=(0, 1, 0)).size == 4
    assert SearchSpace(((8, 16),) * 3, resolutions=(24, 32)).size == 16


def toy_space() -> SearchSpace:
    """Two stages of up to 2 blocks, a free unit, two tied ones, kernels, resolutions: easily listed."""
    return SearchSpace(widths=((4, 8), (1, 2), (1, 2, 3), (2,), (1, 3), (5, 6), (7, 9)),
                       tied=(0, 1, 2, 3, 4, 5, 5), depths=((1, 2), (0, 2)),
                       kernels=((3,), (3, 5), (3,), (5, 7)), block_units=((1,), (2,), (3,), (4,)),
                       resolutions=(16, 32))


def every_subnet(space: SearchSpace) -> list[Subnet]:
    """All names, several for one network, by plain enumeration."""
    axes = [*space.widths, *space.depths, *space.kernels, space.resolutions or (None,)]
    units, stages = len(space.widths), len(space.depths)
    pairs = [(a, b) for a in range(units) for b in range(a) if space.tied and space.tied[a] == space.tied[b]]
    out = []
    for values in itertools.product(*axes):
        subnet = Subnet(values[:units], values[units: units + stages], values[units + stages: -1], values[-1])
        index = [choices.index(width) for choices, width in zip(space.widths, subnet.widths, strict=True)]
        out += [subnet] * all(index[a] == index[b] for a, b in pairs)
    return out


def test_canonical_names_are_unique_and_counted():
    space = toy_space()
    everything = every_subnet(space)
    names = {space.canonical(subnet) for subnet in everything}
    assert space.size == len(names) < len(everything)
    assert all(space.contains(name) for name in names)
    assert all(space.canonical(name) == name for name in names)
    assert not any(space.contains(subnet) for subnet in set(everything) - names)

    def used(subnet):  # what a network computes: the choices of the blocks it keeps
        kept = [*range(subnet.depths[0]), *range(2, 2 + subnet.depths[1])]
        return (subnet.widths[0], subnet.widths[5:], subnet.depths, subnet.resolution,
                tuple((b, subnet.widths[b + 1], subnet.kernels[b]) for b in kept))

    assert len({used(name) for name in names}) == len({used(subnet) for subnet in everything}) == len(names)


def test_samples_cover_the_toy_space_and_lie_in_it():
    space = toy_space()
    rng = np.random.default_rng(0)
    samples = [space.sample(rng) for _ in range(12_000)]
    assert all(space.contains(s) for s in samples)
    assert len(set(samples)) == space.size
    assert space.contains(space.largest) and space.contains(space.smallest)
    assert space.smallest == Subnet((4, 1, 0, 0, 0, 5, 7), (1, 0), (3, 0, 0, 0), 16)
    assert space.largest == Subnet((8, 2, 3, 2, 3, 6, 9), (2, 2), (3, 5, 3, 7), 32)


@st.composite
def spaces(draw):
    units = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))
    tied = tuple(draw(st.integers(0, 2)) for _ in range(units)) if draw(st.booleans()) else ()
    choices = tuple(tuple(sorted(draw(st.sets(st.integers(1, 64), min_size=n, max_size=n))))
                    for n in (sizes[tied[u]] if tied else sizes[u % 3] for u in range(units)))
    return SearchSpace(choices, tied, resolutions=draw(st.sampled_from(((), (24,), (24, 32)))))


@settings(deadline=None)
@given(spaces(), st.integers(0, 2**32))
def test_any_space_contains_what_it_samples(space, seed):
    subnet = space.sample(np.random.default_rng(seed))
    assert space.contains(subnet) and space.canonical(subnet) == subnet
    many = space.sample_widths(np.random.default_rng(seed), 20)
    assert many.shape == (20, len(space.widths))
    assert all(space.contains(Subnet(tuple(map(int, row)), resolution=subnet.resolution)) for row in many)
    assert space.contains(space.largest) and space.contains(space.smallest)
    if space.size < 500:
        assert space.size == len(set(every_subnet(space)))


def test_sampling_is_uniform_and_repeatable():
    space = SearchSpace(((8, 16, 24), (8, 16)))
    rows = space.sample_widths(np.random.default_rng(1), 60_000)
    counts = np.unique(rows, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and abs(counts / 10_000 - 1).max() < 0.05
    assert np.array_equal(rows, space.sample_widths(np.random.default_rng(1), 60_000))


def test_contains_refuses_what_is_not_in_the_space():
    space = SearchSpace(((8, 16), (8, 24)), tied=(0, 0))
    assert space.contains(Subnet((8, 8))) and space.contains(Subnet((16, 24)))
    for other in (Subnet((8, 24)), Subnet((12, 8)), Subnet((8,)), Subnet((8, 8), (1,)),
                  Subnet((8, 8), (), (3,)), Subnet((8, 8), resolution=32)):
        assert not space.contains(other)


@pytest.mark.parametrize(("fields", "code"), (
    ({"widths": ((16, 8),)}, "ParameterError"), ({"widths": ((8, 8),)}, "ParameterError"), ({"widths": ((),)},
                                                                                            "ParameterError"),
    ({"widths": ((0, 8),)}, "ParameterError"), ({"widths": ((8.0,),)}, "ParameterError"), ({"widths": (8,)},
                                                                                           "ParameterError"),
    ({"widths": ((8,),), "resolutions": (32, 24)}, "ParameterError"), ({"widths": ((8,),), "kernels": ((5, 3),)},
                                                                       "ParameterError"),
    ({"widths": ((8,),), "tied": (0, 1)}, "ParameterError"),
    ({"widths": ((8,),), "depths": ((1, 2),), "kernels": ((3,),)}, "ParameterError"),
    ({"widths": ((8,),), "depths": ((1, 2),), "block_units": ((0,),)}, "ParameterError"),
    ({"widths": ((8,), (8, 16)), "tied": (0, 0)}, "ParameterError"),
    ({"widths": ((8,), (8,)), "tied": (0, 0), "depths": ((1, 2),), "block_units": ((0,), (1,))}, "ParameterError")))
def test_bad_spaces(fields, code):
    with fails(code):
        SearchSpace(**fields)


def test_the_least_supernet_of_subnets_that_are_not_nested():
    subnets = [Subnet((8, 32, 8)), Subnet((16, 8, 8)), Subnet((8, 8, 24))]
    assert elementwise_max(subnets) == (16, 32, 24) and elementwise_max(iter(subnets[:1])) == (8, 32, 8)
    for given_ in ([], [Subnet((8,)), Subnet((8, 8))]):
        with fails("ParameterError"):
            elementwise_max(given_)


def test_subnets_at_indices():
    space = SearchSpace(((8, 16), (8, 24, 32)))
    assert space.at(np.array([[0, 2], [1, 0]])) == [Subnet((8, 32)), Subnet((16, 8))]
    assert space.at(np.array([[1, 2], [0, 0]])) == [space.largest, space.smallest]
