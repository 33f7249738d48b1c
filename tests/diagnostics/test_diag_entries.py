"""Measures of entries: by hand, against the methods' own definitions, by property."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.diagnostics.entries import HISTOGRAM, EntrySums, PairSums, StackSums, change
from triune.methods import _outliers


def sums(*numbers: float) -> EntrySums:
    made = EntrySums()
    made.see(torch.tensor(numbers))
    return made


def test_moments_by_hand() -> None:
    """3, -4, 0, 0: magnitudes add up to 7, squares to 25, fourth powers to 81 + 256 = 337."""
    made = sums(3.0, -4.0, 0.0, 0.0)
    assert (made.count, made.zeros, made.one, made.two, made.four) == (4, 2, 7.0, 25.0, 337.0)
    assert made.norm == 5.0
    assert made.kurtosis == pytest.approx(4 * 337 / 625)
    assert made.hoyer == pytest.approx((2 - 7 / 5) / (2 - 1))
    assert made.near_zero == 0.5


def test_a_pair_by_hand() -> None:
    """(1, -2, 3, 0) and (1, 2, -1, 5): three entries that both change, two with opposite signs, dot 1 - 4 - 3 = -6.

    Magnitudes add up to 6 and 9, those of the sum (2, 0, 2, 5) to 9: 6 of 15 are cancelled.
    """
    a, b = torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([1.0, 2.0, -1.0, 5.0])
    pair = PairSums()
    pair.see(a, b)
    one, two = sums(*a.tolist()), sums(*b.tolist())
    assert pair.conflict == pytest.approx(2 / 3)
    assert pair.cancelled(one, two) == pytest.approx(6 / 15)
    assert pair.cosine(one, two) == pytest.approx(-6 / math.sqrt(14 * 31))


def test_the_opposite_cancels_everything() -> None:
    d = torch.randn(100, generator=torch.Generator().manual_seed(0))
    pair, one = PairSums(), sums(*d.tolist())
    pair.see(d, -d)
    assert (pair.conflict, pair.cancelled(one, one)) == (1.0, 1.0)
    assert pair.cosine(one, one) == pytest.approx(-1)


@pytest.mark.parametrize("spikes", [0, 5])
def test_against_the_definitions_of_r_tsvm(spikes: int) -> None:
    """Sums are exact; what is read off the bins is so to their width, 0.8 %."""
    d = torch.randn(200, 300, generator=torch.Generator().manual_seed(1)) * 1e-4
    d.view(-1)[:spikes] = 0.5
    made = EntrySums()
    for row in d.split(7):
        made.see(row)
    assert made.hoyer == pytest.approx(_outliers.hoyer(d), rel=1e-5)
    assert made.near_zero == pytest.approx(_outliers.near_zero(d), rel=0.02)
    assert made.threshold() == pytest.approx(_outliers.magnitude_threshold(d, 3.0), rel=0.02)
    assert made.above(made.threshold())[1] == pytest.approx(_outliers.outlier_share(d, 3.0), rel=0.12)


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_hill_finds_the_exponent_of_a_pareto(alpha: float) -> None:
    uniform = torch.rand(1_000_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    made = EntrySums()
    made.see(uniform.pow(-1 / alpha).float())
    assert made.hill() == pytest.approx(alpha, rel=0.05)


def test_hill_of_too_few_or_equal_entries() -> None:
    assert sums(1.0, 2.0).hill() is None
    assert EntrySums().hill() is None


def test_the_histogram_by_hand() -> None:
    """Root mean square of (1, 1, 1, 1) is 1: its four entries stand in the first quarter of the octave above 2^0."""
    low, high, parts = HISTOGRAM
    made = sums(1.0, -1.0, 1.0, 1.0)
    told = made.histogram()
    assert len(told) == (high - low) * parts
    assert [i for i, n in enumerate(told) if n] == [-low * parts]
    assert sum(told) == 4


def test_cutting_outliers_off_keeps_the_number_of_entries() -> None:
    made = sums(*[1.0] * 1000, 50.0)
    before, after = made.histogram(), made.histogram(made.threshold())
    assert sum(before) == sum(after) == 1001
    assert max(i for i, n in enumerate(after) if n) < max(i for i, n in enumerate(before) if n)


numbers = st.floats(-1e3, 1e3, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=60), st.integers(1, 59))
def test_blocks_add_up_to_the_whole(entries: list[float], cut: int) -> None:
    whole, parts, d = EntrySums(), EntrySums(), torch.tensor(entries)
    whole.see(d)
    for part in (d[:cut], d[cut:]):
        parts.see(part)
    assert torch.equal(whole.bins, parts.bins)
    assert (whole.count, whole.zeros) == (parts.count, parts.zeros)
    assert parts.two == pytest.approx(whole.two)
    assert 0 <= whole.hoyer <= 1 + 1e-9
    assert sum(whole.histogram()) == whole.count - whole.zeros


def test_a_stack() -> None:
    made = StackSums.of(2)
    made.see(torch.full((1, 4), 2.0), torch.tensor([[[1.0, 1, 1, 1]], [[-1.0, 1, 1, 1]]]))
    assert made.base_two == pytest.approx(16)
    assert [e.one for e in made.experts] == [4.0, 4.0]
    assert made.pairs[0, 1].conflict == 0.25


def test_change_by_hand() -> None:
    """The merge (1, 1) of d = (2, 0) and e = (-1, 0.5): half of d; -0.5 / 1.25 of e, one sign turned."""
    merged, deltas = torch.tensor([[1.0, 1.0]]), torch.tensor([[[2.0, 0.0]], [[-1.0, 0.5]]])
    assert change(merged, deltas) == [(0.5, 0.0, 0.0), (pytest.approx(-0.4), 0.5, 0.0)]
