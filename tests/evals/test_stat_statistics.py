"""Intervals, means and tests: by hand, against published and enumerated numbers, and by property."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.evals.benchmark import BENCHMARKS, Benchmark, members
from triune.evals.statistics import (
    RESAMPLES,
    Estimate,
    Paired,
    bootstrap,
    compare,
    estimate,
    holm,
    mcnemar,
    mean,
    normalised,
    oriented,
    paired,
    ranks,
    retention,
    standard_error,
    weights,
    wilson,
)

scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)
shares = st.floats(0, 1)


def exactly(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value, value if low is None else low, value if high is None else high, 0.0, 10)


# --- intervals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_table_of_newcombe_1998(r: int, n: int, low: float, high: float) -> None:
    """Statistics in Medicine 17:857, table I, method 3."""
    assert wilson(r / n, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_by_hand() -> None:
    """r = n = 1: middle (1 + z²/2) / (1 + z²), half z / (1 + z²) * z/2, so low = 1 / (1 + z²) with z² = 3.8415."""
    low, high = wilson(1.0, 1)
    assert low == pytest.approx(1 / 4.8415, abs=1e-5)
    assert high == 1.0


def test_standard_error_by_hand() -> None:
    """Mean 0.5, squares 0.25 + 0 + 0.25 = 0.5, variance 0.5 / 2, over 3: sqrt(1/12)."""
    assert standard_error([0.0, 0.5, 1.0]) == pytest.approx(math.sqrt(1 / 12))
    assert standard_error([0.5]) is None


def test_bootstrap_against_all_resamples() -> None:
    """Of 0, 1/4, 1 there are 27 resamples: their 2.5 % and 97.5 % points can be listed."""
    rows = [0.0, 0.25, 1.0]
    everything = sorted(sum(draw) / 3 for draw in itertools.product(rows, repeat=3))
    assert bootstrap(rows, "any") == pytest.approx((everything[0], everything[-1]))  # each end has 1 in 27 > 2.5 %
    rows = [0.0, 0.0, 0.5, 1.0, 1.0]
    everything = sorted(sum(draw) / 5 for draw in itertools.product(rows, repeat=5))
    n = len(everything)
    assert bootstrap(rows, "any") == pytest.approx((everything[int(0.025 * n)], everything[int(0.975 * n)]))


@pytest.mark.parametrize("n", range(1, 12))
def test_bootstrap_holds_the_mean_in_spite_of_rounding(n: int) -> None:
    """3 * 0.1 / 3 is not 0.1 in floats."""
    low, high = bootstrap([0.1] * n, "a")
    assert low <= math.fsum([0.1] * n) / n <= high


def test_three_equal_scores_are_no_certainty() -> None:
    """0.7 three times: the interval is that of a share of 0.7, [0.27, 0.94], not a point."""
    found = estimate([0.7] * 3, "a")
    assert (found.low, found.high) == wilson(found.value, 3)
    assert found.low < 0.3 < 0.9 < found.high


def test_bootstrap_is_the_same_for_the_same_seed_and_any_order() -> None:
    rows = [i / 37 for i in range(37)]
    assert bootstrap(rows, "a") == bootstrap(rows[::-1], "a")
    assert bootstrap(rows, "a") != bootstrap(rows, "b")


def test_bootstrap_in_blocks() -> None:
    """More different scores than fit into one block; the interval is near mean ± 1.96 standard errors."""
    rows = [(i * 0.618034) % 1 for i in range(2001)]
    error = standard_error(rows)
    assert error is not None
    low, high = bootstrap(rows, "a", resamples=4000)
    centre = math.fsum(rows) / len(rows)
    assert low == pytest.approx(centre - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(centre + 1.96 * error, abs=0.1 * error)


def test_right_or_wrong_scores_get_wilsons_interval() -> None:
    assert (estimate([1.0, 0.0, 1.0], "a").low, estimate([1.0, 0.0, 1.0], "a").high) == wilson(2 / 3, 3)
    assert (estimate([0.5, 0.0, 1.0], "a").low, estimate([0.5, 0.0, 1.0], "a").high) == bootstrap([0.5, 0, 1], "a")


@settings(max_examples=50, deadline=None)
@given(scores)
def test_an_interval_holds_its_estimate_and_stays_in_range(rows: list[float]) -> None:
    for found in (estimate(rows, "a"), estimate([round(s) for s in rows], "a")):
        assert 0 <= found.low <= found.value <= found.high <= 1


@given(shares, st.integers(1, 10_000))
def test_wilson_narrows_with_n_and_mirrors(share: float, n: int) -> None:
    low, high = wilson(share, n)
    assert wilson(1 - share, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    more = wilson(share, 4 * n)
    assert more[1] - more[0] < high - low


# --- direction, scale, rank -------------------------------------------------------------------------------------


def test_direction() -> None:
    found = Estimate(0.3, 0.2, 0.5, 0.05, 40)
    assert oriented(found, True) is found
    assert oriented(found, False) == Estimate(0.7, 0.5, 0.8, 0.05, 40)


def test_normalised_is_not_clipped() -> None:
    assert normalised(0.2, 0.25, 0.75) == pytest.approx(-0.1)  # (0.2 - 0.25) / 0.5: worse than guessing
    assert normalised(1.0, 0.25, 0.75) == pytest.approx(1.5)  # better than every specialist
    assert normalised(0.5, 0.25, 0.25) is None
    assert normalised(0.5, 0.25, 0.1) is None


def test_retention() -> None:
    half, third = exactly(0.5), replace(exactly(0.25), missing=("mbpp",))
    assert retention(half, exactly(0.4)) == pytest.approx(1.25)
    assert retention(half, third) is None  # not of the same benchmarks
    assert retention(None, half) is None
    assert retention(half, exactly(0.0)) is None


@given(st.dictionaries(st.text(max_size=3), st.one_of(st.none(), shares), max_size=8), st.randoms())
def test_ranks_do_not_depend_on_the_order(values: dict[str, float | None], random: object) -> None:
    shuffled = list(values.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = ranks(values)
    assert ranks(dict(shuffled)) == found
    known = sorted(r for r in found.values() if r is not None)
    assert all(rank <= place for place, rank in enumerate(known, 1))
    assert known[:1] in ([], [1])


# --- means ------------------------------------------------------------------------------------------------------


def some(*names: str) -> list[Benchmark]:
    return [BENCHMARKS[n] for n in names]


def test_weights_by_hand() -> None:
    """Two Hs 1/2 each; helpful has math (1/2) and coding (1/2), coding two benchmarks: 1/4 and 2 x 1/8; honest 1/2."""
    found = weights(some("gsm8k", "humaneval", "mbpp", "selfaware"))
    assert found == {"gsm8k": 1 / 4, "humaneval": 1 / 8, "mbpp": 1 / 8, "selfaware": 1 / 2}


def test_mean_by_hand() -> None:
    """0.5 * 0.6 + 0.25 * (0.2 + 0.4) = 0.45; below sqrt((0.5 * 0.1)² + (0.25 * 0.2)²) = 0.05 sqrt(2); above half that."""
    parts = {
        "gsm8k": Estimate(0.6, 0.5, 0.65, 0.05, 100),
        "humaneval": Estimate(0.2, 0.0, 0.3, 0.1, 50),
        "mbpp": Estimate(0.4, 0.4, 0.4, 0.0, 20),
    }
    found = mean(parts, some("gsm8k", "humaneval", "mbpp"))
    assert found is not None
    assert found.value == pytest.approx(0.45)
    assert found.low == pytest.approx(0.45 - 0.05 * math.sqrt(2))
    assert found.high == pytest.approx(0.45 + 0.025 * math.sqrt(2))
    assert found.stderr == pytest.approx(math.hypot(0.5 * 0.05, 0.25 * 0.1))
    assert (found.n, found.missing) == (170, ())


def test_a_mean_over_fewer_says_so() -> None:
    """Without MBPP coding is HumanEval alone: (0.6 + 0.2) / 2, not (0.6 + (0.2 + 0) / 2) / 2."""
    found = mean({"gsm8k": exactly(0.6), "humaneval": exactly(0.2)}, some("gsm8k", "humaneval", "mbpp"))
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert found.missing == ("mbpp",)


def test_two_hs_are_no_mean_of_three() -> None:
    three = some("gsm8k", "selfaware", "or_bench")
    two = {"gsm8k": exactly(0.6), "selfaware": exactly(0.2)}
    assert mean(two, three) is None
    assert mean({}, three) is None
    assert mean(two, three[:2]) is not None


def test_the_mean_of_one_is_that_one() -> None:
    one = Estimate(0.25, 0.125, 0.5, 0.0625, 8)
    assert mean({"gsm8k": one}, some("gsm8k")) == one


def test_a_standard_error_that_is_not_known_stays_so() -> None:
    parts = {"humaneval": replace(exactly(0.5), stderr=None), "mbpp": exactly(0.5)}
    found = mean(parts, some("humaneval", "mbpp"))
    assert found is not None
    assert found.stderr is None


@given(st.data())
def test_a_mean_is_the_nested_mean_and_its_interval_stays_in_range(data: st.DataObject) -> None:
    group = members("triune_3h")
    parts = {}
    for b in group:
        low, value, high = sorted(data.draw(st.tuples(shares, shares, shares)))
        parts[b.name] = Estimate(value, low, high, 0.1, 10)

    def average(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    by_h = []
    for h in ("helpful", "honest", "harmless"):
        dimensions = sorted({b.dimension for b in group if b.h == h})
        by_h.append(average([average([parts[b.name].value for b in group if b.dimension == d]) for d in dimensions]))
    found = mean(parts, group)
    assert found is not None
    assert found.value == pytest.approx(average(by_h))
    assert -1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12
    assert mean(parts, group[::-1]).value == pytest.approx(found.value)  # type: ignore[union-attr]


# --- tests on the same rows -------------------------------------------------------------------------------------


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == 2 / 2**5
    assert mcnemar(2, 8) == 2 * (1 + 10 + 45) / 2**10


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(wins: int, losses: int) -> None:
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    assert mcnemar(wins, losses) == mcnemar(losses, wins) == min(1.0, 2 * tail / 2**n)


def test_mcnemar_of_many_rows() -> None:
    """2^14000 is beyond what a float can hold. By the normal approximation z = (200 - 1) / sqrt(14000) = 1.682."""
    assert mcnemar(7100, 6900) == pytest.approx(0.0926, abs=0.0001)


@pytest.mark.parametrize("n", range(1, 60))
def test_mcnemar_finds_no_more_than_one_in_twenty_by_chance(n: int) -> None:
    found = sum(math.comb(n, wins) for wins in range(n + 1) if mcnemar(wins, n - wins) < 0.05)
    assert found / 2**n < 0.05


def test_pairing_takes_the_shared_rows_and_the_direction() -> None:
    first, second = {"a": 1.0, "b": 0.5, "c": 0.0}, {"b": 0.25, "a": 0.0, "d": 1.0}
    up, down = (paired(first, second, direction, "t") for direction in (True, False))
    assert up is not None
    assert down is not None
    assert up.differences == (1.0, 0.25)
    assert down.differences == (-1.0, -0.25)
    assert not up.right_or_wrong
    assert paired(first, {"d": 1.0}, True, "t") is None
    binary = paired({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, True, "t")
    assert binary is not None
    assert binary.right_or_wrong


def test_right_and_wrong_rows_are_compared_by_mcnemar() -> None:
    """6 rows only the first has right, 1 only the second, of 20: p = 2 * (1 + 7) / 2^7, difference 5 / 20."""
    pair = Paired((1.0,) * 6 + (-1.0,) + (0.0,) * 13, True, "t")
    found = compare([(1.0, pair)])
    assert (found.test, found.n, found.difference, found.p) == ("mcnemar", 20, 0.25, 0.125)
    assert found.low < 0.25 < found.high


def test_the_bootstrap_test_against_all_resamples() -> None:
    """Differences 1/2, 1/4, 1/4, 0, -1/8 have 5^5 resamples: how many centred means are as large can be counted."""
    differences = (0.5, 0.25, 0.25, 0.0, -0.125)
    centre = sum(differences) / 5
    means = [sum(d - centre for d in draw) / 5 for draw in itertools.product(differences, repeat=5)]
    exact = sum(abs(m) >= centre - 1e-12 for m in means) / len(means)
    found = compare([(1.0, Paired(differences, False, "t"))])
    assert found.test == "bootstrap"
    assert found.difference == pytest.approx(0.175)
    assert 0.02 < exact < 0.2
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact / RESAMPLES))


def test_the_bootstrap_test_of_a_mean_of_benchmarks() -> None:
    """1/4 of one benchmark and 3/4 of another, against all 2^2 x 3^3 resamples of both."""
    one, two = (0.5, -0.25), (0.5, 0.25, 0.0)
    observed = 0.25 * sum(one) / 2 + 0.75 * sum(two) / 3  # 0.03125 + 0.1875
    means = [
        0.25 * sum(d - 0.125 for d in a) / 2 + 0.75 * sum(d - 0.25 for d in b) / 3
        for a in itertools.product(one, repeat=2)
        for b in itertools.product(two, repeat=3)
    ]
    exact = sum(abs(m) >= observed - 1e-12 for m in means) / len(means)
    found = compare([(0.25, Paired(one, False, "one")), (0.75, Paired(two, False, "two"))])
    assert found.difference == pytest.approx(observed)
    assert found.n == 5
    assert 0 < exact < 0.2
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact / RESAMPLES))


def test_equal_models_do_not_differ() -> None:
    for exact in (True, False):
        found = compare([(1.0, Paired((0.0,) * 8, exact, "t"))])
        assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=4), st.tuples(shares, shares), min_size=1, max_size=12))
def test_swapping_two_models_changes_the_sign_alone(rows: dict[str, tuple[float, float]]) -> None:
    first, second = ({i: pair[k] for i, pair in rows.items()} for k in (0, 1))
    forth, back = (paired(a, b, True, "t") for a, b in ((first, second), (second, first)))
    assert forth is not None
    assert back is not None
    there, again = compare([(1.0, forth)]), compare([(1.0, back)])
    assert there.difference == -again.difference
    assert there.p == pytest.approx(again.p, abs=0.03)
    assert there.low <= there.difference <= there.high


# --- Holm -------------------------------------------------------------------------------------------------------


def closed(ps: list[float]) -> list[float]:
    """The closed test of Bonferroni's, which Holm's is a short cut for: the largest of all sets that hold it."""
    sets = [s for size in range(1, len(ps) + 1) for s in itertools.combinations(range(len(ps)), size)]
    return [max(min(1.0, len(s) * min(ps[j] for j in s)) for s in sets if i in s) for i in range(len(ps))]


def test_holm_by_hand() -> None:
    """In order 4 * 0.005, 3 * 0.01, 2 * 0.03, and 1 * 0.04 raised to the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.randoms())
def test_holm_is_the_closed_test(ps: list[float], random: object) -> None:
    found = holm(ps)
    assert found == pytest.approx(closed(ps))
    assert all(p <= c <= 1 for p, c in zip(ps, found, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(order))
    places = list(range(len(ps)))
    random.shuffle(places)  # type: ignore[attr-defined]
    assert holm([ps[i] for i in places]) == [found[i] for i in places]
