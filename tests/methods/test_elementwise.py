"""The eleven elementwise methods, by hand. Each docstring shows the arithmetic; d1, d2 are deltas, x their survivors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from triune.errors import CheckpointError, ParameterError
from triune.methods import find
from triune.methods._lowrank import LowRank
from triune.methods._ops import keep_at_random, magprune_probabilities
from triune.methods._scan import GlobalTrimScan
from triune.methods._spec import View
from triune.methods.tensors import merge_tensors

VIEW = View("model.layers.0.mlp.up_proj.weight", ("helpful", "honest", "harmless"), seed=11)
SPARSE = ("ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties")
DELTA_METHODS = ("task_arithmetic", *SPARSE)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(method: str, deltas: Any, **values: Any) -> torch.Tensor:
    return find(method)(torch.as_tensor(deltas, dtype=torch.float32), view=VIEW, **values)


def rounded(merged: torch.Tensor) -> list[Any]:
    return [pytest.approx(x, abs=1e-6) for x in merged.flatten().tolist()]


# ---- linear


def test_linear_by_hand() -> None:
    """(3 * 1 + 1 * 3) / 4 = 1.5 and (3 * 2 + 1 * 6) / 4 = 3; unnormalized 0.5 * 1 + 0.25 * 3 = 1.25, 1 + 1.5 = 2.5;
    with a negative weight (2 * 1 - 3) / 1 = -1 and 4 - 6 = -2.
    """
    models = [[1.0, 2.0], [3.0, 6.0]]
    assert run("linear", models, weight=[3, 1]).tolist() == [1.5, 3.0]
    assert run("linear", models, weight=[0.5, 0.25], normalize=False).tolist() == [1.25, 2.5]
    assert run("linear", models, weight=[2, -1]).tolist() == [-1.0, -2.0]


def test_linear_of_equal_models_is_exactly_the_model() -> None:
    one = noise(1000)
    assert torch.equal(run("linear", torch.stack([one, one, one]), weight=[0.1, 0.7, 1 / 3]), one)
    assert torch.equal(run("rewarded_soup", torch.stack([one, one, one]), weight=[1 / 3, 1 / 3, 1 / 3]), one)


def test_linear_does_not_change_when_all_weights_are_scaled() -> None:
    models = noise(3, 50)
    torch.testing.assert_close(
        run("linear", models, weight=[1, 2, 3]), run("linear", models, weight=[-0.5, -1, -1.5]), rtol=1e-5, atol=1e-6
    )


def test_linear_refuses_weights_that_cancel() -> None:
    with pytest.raises(ParameterError) as error:
        run("linear", [[1.0], [2.0]], weight=[0.5, -0.5])
    assert str(error.value) == (
        "weight: the weights [0.5, -0.5] add up to zero, so normalize: true would divide by zero. "
        "Change a weight or set normalize: false."
    )
    assert run("linear", [[1.0], [2.0]], weight=[0.5, -0.5], normalize=False).tolist() == [-0.5]


# ---- rewarded_soup


def test_rewarded_soup_by_hand() -> None:
    """0.25 * 0 + 0.75 * 8 = 6 and 0.25 * 4 = 1; a corner of the simplex is one of the models."""
    assert run("rewarded_soup", [[0.0, 4.0], [8.0, 0.0]], weight=[0.25, 0.75]).tolist() == [6.0, 1.0]
    assert run("rewarded_soup", [[0.0, 4.0], [8.0, 0.0]], weight=[1, 0]).tolist() == [0.0, 4.0]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            [0.5, 1.0],
            "weight: rewarded_soup takes a point of the simplex: the weights must add up to 1, got 1.5 from [0.5, 1.0]. "
            "Divide each by 1.5, or use linear.",
        ),
        ([1.5, -0.5], "weight must lie in [0, 1], got 1.5."),
    ],
)
def test_rewarded_soup_takes_points_of_the_simplex(weight: list[float], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        run("rewarded_soup", [[1.0], [2.0]], weight=weight)
    assert str(error.value) == message


def test_rewarded_soup_in_three_spaces() -> None:
    """B1 A1 = 1 * 2 = 2 and B2 A2 = 3 * 4 = 12. Their mean is 7; the product of the means is (1 + 3)/2 * (2 + 4)/2 = 6."""
    soup = find("rewarded_soup")
    assert soup.factors is not None
    factors = [LowRank(torch.tensor([[b]]), torch.tensor([[a]])) for b, a in ((1.0, 2.0), (3.0, 4.0))]
    view = View("w", shape=(1, 1))

    def merged(space: str, weight: list[float], models: list[LowRank | None]) -> float:
        assert soup.factors is not None
        return float(soup.factors(models, view=view, weight=weight, space=space).dense())

    assert merged("lora_delta", [0.5, 0.5], [*factors]) == 7.0
    assert merged("full", [0.5, 0.5], [*factors]) == 7.0
    assert merged("lora_factors", [0.5, 0.5], [*factors]) == 6.0
    wide = LowRank(torch.ones(1, 2), torch.ones(2, 1))
    assert merged("lora_factors", [1.0, 0.0], [factors[1], wide]) == 12.0  # coefficient zero: skipped
    with pytest.raises(ParameterError, match=r"need one rank, got \[1, 2\] in w. Use space: lora_delta."):
        merged("lora_factors", [0.5, 0.5], [factors[0], wide])


# ---- task_arithmetic


def test_task_arithmetic_by_hand() -> None:
    """0.5 * (1 + 0.5 * 2) = 1 and 0.5 * (-1 + 0.5 * 4) = 0.5; normalized, both over 1.5. Weights that cancel are not
    divided by: 1 * 1 - 1 * 2 = -1 and -1 - 4 = -5.
    """
    deltas = [[1.0, -1.0], [2.0, 4.0]]
    assert run("task_arithmetic", deltas, weight=[1, 0.5], lambda_=0.5).tolist() == [1.0, 0.5]
    assert rounded(run("task_arithmetic", deltas, weight=[1, 0.5], lambda_=0.5, normalize=True)) == [2 / 3, 1 / 3]
    assert run("task_arithmetic", deltas, weight=[1, -1], normalize=True).tolist() == [-1.0, -5.0]


@pytest.mark.parametrize("name", ["scaling_factor", "scaling", "alpha"])
def test_other_names_of_lambda(name: str) -> None:
    assert run("task_arithmetic", [[2.0]], weight=1, **{name: 0.25}).tolist() == [0.5]


# ---- ties

TWO = [[4.0, -1.0, 3.0, 0.5], [1.0, 2.0, -2.0, 0.25]]


def test_ties_by_hand() -> None:
    """Half of each: x1 = (4, 0, 3, 0), x2 = (0, 2, -2, 0). The sums 4, 2, 1, 0 elect +, so entry 2 keeps only x1."""
    assert run("ties", TWO, weight=1, density=0.5).tolist() == [4.0, 2.0, 3.0, 0.0]
    assert run("ties", TWO, weight=1, density=0.5, lambda_=2).tolist() == [8.0, 4.0, 6.0, 0.0]


def test_ties_with_weights() -> None:
    """Weights 1, 2: y2 = (0, 4, -4, 0), and 3 - 4 < 0 elects - at entry 2. Added up: 4, 4, -4; over the weights that took
    part, 1, 2, 2: 4, 2, -2.
    """
    assert run("ties", TWO, weight=[1, 2], density=0.5, normalize=False).tolist() == [4.0, 4.0, -4.0, 0.0]
    assert run("ties", TWO, weight=[1, 2], density=0.5).tolist() == [4.0, 2.0, -2.0, 0.0]


def test_ties_with_a_negative_weight() -> None:
    """Weights 1, -1: y2 = (0, -2, 2, 0). Entry 1: -2 / -1 = 2. Entry 2: (3 + 2) over 1 - 1 = 0, which is not divided by."""
    assert run("ties", TWO, weight=[1, -1], density=0.5).tolist() == [4.0, 2.0, 5.0, 0.0]


def test_ties_a_density_for_each_expert() -> None:
    """x1 = (4, 0, 0, 0), x2 all: sums 5, 2, -2, 0.25 elect +, +, -, +."""
    assert run("ties", TWO, weight=1, density=[0.25, 1]).tolist() == [2.5, 2.0, -2.0, 0.25]


def test_ties_keeps_at_least_one_entry_and_the_lowest_index_of_equals() -> None:
    assert run("ties", [[2.0, -3.0, 3.0]], weight=1, density=0.01).tolist() == [0.0, -3.0, 0.0]
    assert run("ties", [[3.0, 2.0, -2.0, 2.0, 1.0]], weight=1, density=0.4).tolist() == [3.0, 2.0, 0.0, 0.0, 0.0]


def test_ties_paper_threshold_keeps_all_of_its_magnitude() -> None:
    """D = 5, D * 0.4 = 2: the (5 - 2) = third smallest of 1, 2, 2, 2, 3 is 2, and all of 2 and above stay."""
    merged = run("ties", [[3.0, 2.0, -2.0, 2.0, 1.0]], weight=1, density=0.4, semantics="paper")
    assert merged.tolist() == [3.0, 2.0, -2.0, 2.0, 0.0]


def test_ties_paper_keeps_one_more_than_the_density_says() -> None:
    """D = 4, D * 0.5 = 2: the second smallest of 1, 2, 3, 4 is 2, so three stay."""
    assert run("ties", [[1.0, 2.0, 3.0, 4.0]], weight=1, density=0.5, semantics="paper").tolist() == [0, 2, 3, 4]


def test_ties_paper_with_more_zeros_than_are_trimmed_keeps_everything() -> None:
    """D = 4, D * 0.5 = 2: the second smallest of 0, 0, 0, 1 is 0."""
    assert run("ties", [[0.0, 0.5, 0.0, 0.0]], weight=1, density=0.5, semantics="paper").tolist() == [0, 0.5, 0, 0]


def test_ties_paper_has_one_threshold_for_the_whole_model() -> None:
    """Tensors (8, 7) and (2, 1), density 0.25: D - 1 = third smallest of 1, 2, 7, 8 is 7. The second tensor goes."""
    first, second = torch.tensor([[8.0, 7.0]]), torch.tensor([[2.0, 1.0]])
    scan = GlobalTrimScan([0.25], [1.0])
    for turn in range(3):
        for deltas in (first, second):
            scan.see(turn, deltas, View())
        scan.close(turn)
    ties, stats = find("ties").function, scan.result()
    values = {"weight": (1.0,), "density": (0.25,), "semantics": "paper", "stats": stats}
    assert ties(first, view=View(), **values).tolist() == [8.0, 7.0]
    assert ties(second, view=View(), **values).tolist() == [0.0, 0.0]


# ---- the zero sign sum: entry 0 of d1 + d2 is 1 - 1

ZERO_SUM = {
    "majority +": ([[1.0, 2.0, 5.0], [-1.0, 1.0, 1.0]], [1.0, 1.5, 3.0]),
    "majority -": ([[1.0, -2.0, -5.0], [-1.0, -1.0, -1.0]], [-1.0, -1.5, -3.0]),
    "no majority": ([[1.0, 2.0, -5.0], [-1.0, 1.0, 1.0]], [-1.0, 1.5, -5.0]),
}


@pytest.mark.parametrize("case", ZERO_SUM)
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_zero_sign_sum_paper_takes_the_models_majority_then_minus(method: str, case: str) -> None:
    """The other entries' sums are (3, 6), (-3, -6), (3, -4), so most of the model is +, -, or neither."""
    deltas, expected = ZERO_SUM[case]
    everything = {"trim_density": 1.0} if method == "dare_ties" else {}
    assert run(method, deltas, weight=1, density=1.0, semantics="paper", **everything).tolist() == expected


@pytest.mark.parametrize("case", ZERO_SUM)
@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs_ties"])
def test_zero_sign_sum_mergekit_elects_plus(method: str, case: str) -> None:
    deltas, expected = ZERO_SUM[case]
    assert run(method, deltas, weight=1, density=1.0, normalize=True).tolist() == [1.0, *expected[1:]]


@pytest.mark.parametrize("case", ZERO_SUM)
@pytest.mark.parametrize("method", ["della", "breadcrumbs_ties"])
def test_zero_sign_sum_paper_is_minus_where_no_vote_is_taken(method: str, case: str) -> None:
    deltas, expected = ZERO_SUM[case]
    assert run(method, deltas, weight=1, density=1.0, semantics="paper").tolist() == [-1.0, *expected[1:]]


# ---- dare


def masked(deltas: torch.Tensor, density: float) -> torch.Tensor:
    return deltas * keep_at_random(deltas, [density] * len(deltas), VIEW)


def test_dare_paper_divides_by_the_density() -> None:
    """lambda * (w1 m1 d1 + w2 m2 d2) / density."""
    deltas = noise(2, 400)
    x = masked(deltas, 0.25) / 0.25
    merged = run("dare_linear", deltas, weight=[1, -0.5], density=0.25, lambda_=0.3, semantics="paper")
    torch.testing.assert_close(merged, 0.3 * (x[0] - 0.5 * x[1]))
    unscaled = run("dare_linear", deltas, weight=[1, -0.5], density=0.25, rescale=False, semantics="paper")
    torch.testing.assert_close(unscaled, 0.25 * (x[0] - 0.5 * x[1]))


def test_dare_mergekit_keeps_the_sum_of_magnitudes() -> None:
    """One factor for each expert and tensor: sum |d| / sum |m d|."""
    deltas = noise(2, 400)
    dropped = masked(deltas, 0.25)
    factors = deltas.abs().sum(1) / dropped.abs().sum(1)
    torch.testing.assert_close(
        run("dare_linear", deltas, weight=[1, 2], density=0.25), factors[0] * dropped[0] + 2 * factors[1] * dropped[1]
    )
    one = run("dare_linear", deltas[:1], weight=1, density=0.25)
    assert float(one.abs().sum()) == pytest.approx(float(deltas[0].abs().sum()), rel=1e-5)
    assert torch.equal(run("dare_linear", deltas[:1], weight=1, density=0.25, rescale=False), dropped[0])


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_sums_below_1e_7_are_not_rescaled(method: str) -> None:
    """100 entries of 1e-10 sum up to 1e-8: survivors stay as they are."""
    tiny = torch.full((1, 100), 1e-10)
    assert set(run(method, tiny, weight=1, density=0.5).tolist()) == {0.0, tiny[0, 0].item()}


def test_dare_ties_mergekit_elects_among_survivors_and_adds_up() -> None:
    """y_t = w_t f_t m_t d_t; per entry the sum of those that agree, over the weights of those with normalize."""
    deltas, w = noise(3, 200), torch.tensor([1.0, 0.5, 2.0])[:, None]
    dropped = masked(deltas, 0.5)
    y = w * dropped * (deltas.abs().sum(1) / dropped.abs().sum(1))[:, None]
    agree = y.sign() == torch.where(y.sum(0) >= 0, 1.0, -1.0)
    added = (y * agree).sum(0)
    torch.testing.assert_close(run("dare_ties", deltas, weight=[1, 0.5, 2], density=0.5), added)
    mean = added / (w * agree).sum(0).clamp(min=0.5)  # where none takes part the sum is 0 anyway
    torch.testing.assert_close(run("dare_ties", deltas, weight=[1, 0.5, 2], density=0.5, normalize=True), mean)


def test_dare_ties_paper_is_ties_on_dropped_deltas() -> None:
    deltas = noise(3, 200)
    values: dict[str, Any] = {"weight": [1, 0.5, 2], "lambda_": 0.7, "semantics": "paper"}
    torch.testing.assert_close(
        run("dare_ties", deltas, density=0.5, trim_density=0.3, **values),
        run("ties", masked(deltas, 0.5) / 0.5, density=0.3, **values),
    )
    assert torch.equal(
        run("dare_ties", deltas, density=1.0, trim_density=0.3, **values), run("ties", deltas, density=0.3, **values)
    )


# ---- della


def test_della_probabilities_by_hand() -> None:
    """density 0.5, epsilon 0.2: from 0.3 to 0.7 in steps of 0.4 / 2. Ranks by magnitude: 1, 2, 3 and, of 4, 4, -5 with the
    first of equals lower, 1, 2, 3.
    """
    delta = torch.tensor([[3.0, -1.0, 2.0], [4.0, 4.0, -5.0]])
    assert rounded(magprune_probabilities(delta, 0.5, 0.2)) == [0.7, 0.3, 0.5, 0.3, 0.5, 0.7]
    assert rounded(magprune_probabilities(delta[0], 0.5, 0.2)) == [0.7, 0.3, 0.5]
    assert rounded(magprune_probabilities(delta.reshape(1, 2, 1, 3), 0.5, 0.2)) == [0.7, 0.3, 0.5, 0.3, 0.5, 0.7]


def test_della_probabilities_at_the_edges() -> None:
    assert magprune_probabilities(torch.tensor([[1.0], [2.0]]), 0.25, 0.2).tolist() == [[0.25], [0.25]]
    assert magprune_probabilities(torch.tensor(3.0), 0.25, 0.2).item() == 0.25
    assert magprune_probabilities(torch.ones(4), 1.0, 0.2).tolist() == [1.0] * 4
    assert magprune_probabilities(torch.ones(4), 0.0, 0.2).tolist() == [0.0] * 4


def test_della_probabilities_average_to_the_density_in_long_rows() -> None:
    """Ranks beyond 65504, which fp16 cannot count."""
    q = magprune_probabilities(noise(1, 100_000), 0.6, 0.3)
    assert float(q.mean(dtype=torch.float64)) == pytest.approx(0.6, abs=1e-5)
    assert (float(q.min()), float(q.max())) == pytest.approx((0.3, 0.9), abs=1e-6)
    assert len(q.unique()) > 99_000


def test_della_paper_divides_each_survivor_by_its_own_probability() -> None:
    deltas = noise(2, 20, 10)
    q = torch.stack([magprune_probabilities(d, 0.6, 0.3) for d in deltas])
    x = deltas * keep_at_random(deltas, [*q], VIEW) / q
    values: dict[str, Any] = {"weight": [1, -2], "density": 0.6, "epsilon": 0.3, "lambda_": 1.1, "semantics": "paper"}
    torch.testing.assert_close(run("della_linear", deltas, **values), 1.1 * (x[0] - 2 * x[1]))


def test_della_mergekit_keeps_the_sum_of_magnitudes() -> None:
    deltas = noise(1, 20, 10)
    merged = run("della_linear", deltas, weight=1, density=0.6, epsilon=0.3)
    assert float(merged.abs().sum()) == pytest.approx(float(deltas.abs().sum()), rel=1e-5)
    ratio = (merged / deltas[0])[merged != 0]
    assert float(ratio.max() - ratio.min()) < 1e-5  # one factor for all


def test_della_elects_and_averages() -> None:
    """Entry 0: (4 + 2) / 2 = 3. Entry 1: -1 + 3 > 0, so 3 alone. Added up: 6 and 3."""
    deltas = [[4.0, -1.0], [2.0, 3.0]]
    assert run("della", deltas, weight=1, density=1.0).tolist() == [3.0, 3.0]
    assert run("della", deltas, weight=1, density=1.0, normalize=False, lambda_=2).tolist() == [12.0, 6.0]
    assert run("della", deltas, weight=1, density=1.0, semantics="paper").tolist() == [3.0, 3.0]


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize(("density", "epsilon", "room"), [(0.1, 0.15, "0.1"), (0.9, 0.2, "0.1"), (0.5, 0.499, None)])
def test_della_wants_probabilities(method: str, density: float, epsilon: float, room: str | None) -> None:
    if room is None:
        assert run(method, noise(1, 4), weight=1, density=density, epsilon=epsilon).isfinite().all()
        return
    with pytest.raises(ParameterError) as error:
        run(method, noise(1, 4), weight=1, density=density, epsilon=epsilon)
    assert str(error.value) == (
        f"density - epsilon and density + epsilon must lie in (0, 1), got density {density} and epsilon {epsilon}. "
        f"Choose an epsilon below {room}."
    )


# ---- breadcrumbs


def test_breadcrumbs_by_hand() -> None:
    """Of 4 entries drop the 1 largest, keep the next 2."""
    deltas = [[9.0, 5.0, 4.0, 0.1], [0.2, -6.0, 3.0, 8.0]]
    both = {"density": 0.5, "gamma": 0.25}
    assert run("breadcrumbs", deltas, weight=1, **both).tolist() == [0.0, -1.0, 7.0, 0.0]
    assert run("breadcrumbs", deltas, weight=[1, 3], normalize=True, **both).tolist() == [0.0, -3.25, 3.25, 0.0]
    assert run("breadcrumbs", deltas, weight=[1, 0.5], lambda_=0.5, **both).tolist() == [0.0, 1.0, 2.75, 0.0]


def test_breadcrumbs_ranks_the_tensor_or_each_row() -> None:
    """mergekit: of 8 drop 9 and 5, keep 4, 4, 3, 2. Paper: row by row, drop 9 and keep 5, 4; drop 4 and keep 3, 2."""
    deltas = [[[9.0, 5.0, 4.0, 0.1], [1.0, 2.0, 3.0, -4.0]]]
    both = {"density": 0.5, "gamma": 0.25}
    assert run("breadcrumbs", deltas, weight=1, **both).tolist() == [[0, 0, 4, 0], [0, 2, 3, -4]]
    assert run("breadcrumbs", deltas, weight=1, semantics="paper", **both).tolist() == [[0, 5, 4, 0], [0, 2, 3, 0]]


def test_breadcrumbs_drops_fewer_outliers_where_density_needs_them() -> None:
    """Of 10, density 0.9 keeps 9, so gamma 0.3 drops only 1."""
    deltas = torch.arange(1.0, 11.0)[None]
    assert run("breadcrumbs", deltas, weight=1, density=0.9, gamma=0.3).tolist() == [*range(1, 10), 0]


def test_breadcrumbs_paper_rounds_both_counts_down() -> None:
    """Rows of 5: gamma 0.1 drops none, density 0.3 keeps 1; density 0.1 keeps none."""
    deltas = [[[1.0, 5.0, -3.0, 2.0, 4.0]]]
    assert run("breadcrumbs", deltas, weight=1, density=0.3, gamma=0.1, semantics="paper").tolist() == [[0, 5, 0, 0, 0]]
    assert run("breadcrumbs", deltas, weight=1, density=0.1, gamma=0.1, semantics="paper").tolist() == [[0] * 5]


def test_breadcrumbs_ties_by_hand() -> None:
    """x1 = (0, 5, 4, 0), x2 = (0, -6, 3, 0): -1 elects -, so -6; 4 + 3 = 7, on average 3.5."""
    deltas = [[9.0, 5.0, 4.0, 0.1], [0.2, -6.0, 3.0, 8.0]]
    both = {"density": 0.5, "gamma": 0.25}
    assert run("breadcrumbs_ties", deltas, weight=1, **both).tolist() == [0.0, -6.0, 7.0, 0.0]
    assert run("breadcrumbs_ties", deltas, weight=1, normalize=True, **both).tolist() == [0.0, -6.0, 3.5, 0.0]
    assert run("breadcrumbs_ties", deltas, weight=1, semantics="paper", **both).tolist() == [0.0, -6.0, 3.5, 0.0]


# ---- model_stock

SIXTY_DEGREES = [[2.0, 0.0], [1.0, math.sqrt(3)]]


def test_model_stock_by_hand() -> None:
    """cos = 0.5: t = 2 * 0.5 / 1.5 = 2/3, the mean is (1.5, 0.866), so (1, 0.577)."""
    for semantics in ("mergekit", "paper"):
        assert rounded(run("model_stock", SIXTY_DEGREES, semantics=semantics)) == [1.0, 1 / math.sqrt(3)]


def test_model_stock_averages_the_cosines_of_all_pairs() -> None:
    """e1, e1, e2: cosines 1, 0, 0, mean 1/3, t = 3 * 1/3 / (1 + 2/3) = 0.6; the mean is (2/3, 1/3)."""
    assert rounded(run("model_stock", [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) == [0.4, 0.2]


def test_model_stock_by_row() -> None:
    """Row 0 as above; row 1 has orthogonal experts and goes back to the base. A vector is one row."""
    first, second = SIXTY_DEGREES
    rows = [[first, [1.0, 0.0]], [second, [0.0, 1.0]]]
    assert rounded(run("model_stock", rows, filter_wise=True)) == [1.0, 1 / math.sqrt(3), 0.0, 0.0]
    vectors = noise(3, 30)
    torch.testing.assert_close(run("model_stock", vectors, filter_wise=True), run("model_stock", vectors))


def test_model_stock_with_obtuse_experts() -> None:
    """cos = -0.5: t = -1 / 0.5 = -2. mergekit goes beyond the base, -2 * (0.5, 0.866); the paper's clamp stops there."""
    deltas = [[2.0, 0.0], [-1.0, math.sqrt(3)]]
    assert rounded(run("model_stock", deltas)) == [-1.0, -math.sqrt(3)]
    assert run("model_stock", deltas, semantics="paper").tolist() == [0.0, 0.0]


# ---- the edge-case contract, row by row


def test_contract_one_expert_linear_and_task_arithmetic_give_it_back() -> None:
    one = noise(1, 6, 8)
    for method in ("linear", "rewarded_soup", "task_arithmetic"):
        assert torch.equal(run(method, one, weight=1), one[0])


def test_contract_one_expert_ties_gives_its_trimmed_delta() -> None:
    one = noise(1, 40)
    threshold = one.abs().flatten().sort(descending=True).values[9]
    torch.testing.assert_close(run("ties", one, weight=0.7, density=0.25), one[0] * (one[0].abs() >= threshold))


@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
def test_contract_one_expert_model_stock_refuses(semantics: str) -> None:
    with pytest.raises(ParameterError, match=r"^model_stock needs at least 2 experts, got 1\.$"):
        run("model_stock", noise(1, 4), semantics=semantics)


@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
@pytest.mark.parametrize("method", [*DELTA_METHODS, "model_stock"])
def test_contract_zero_deltas_give_the_base(method: str, semantics: str) -> None:
    """Bit for bit, in every dtype."""
    density = {"density": 0.5} if method in SPARSE else {}
    weight = {} if method == "model_stock" else {"weight": 1.0}
    parameters = {**weight, **density} | ({} if method == "task_arithmetic" else {"semantics": semantics})
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        base = noise(6, 8).to(dtype)
        merged = merge_tensors(method, [base, base, base], base, parameters=parameters, name="w")
        assert merged.dtype == dtype
        assert torch.equal(merged, base)


@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
@pytest.mark.parametrize("method", SPARSE)
def test_contract_density_1_leaves_the_delta_unscaled(method: str, semantics: str) -> None:
    one = noise(1, 6, 8)
    trim = {"trim_density": 1.0} if method == "dare_ties" else {}
    assert torch.equal(run(method, one, weight=1, density=1.0, semantics=semantics, **trim), one[0])


@pytest.mark.parametrize("method", SPARSE)
def test_contract_density_0_is_the_base_in_mergekit_and_refused_by_the_paper(method: str) -> None:
    """Also beside an expert that has a density: y1 alone is left."""
    deltas = noise(2, 6, 8)
    assert not run(method, deltas, weight=1, density=0).any()
    assert torch.equal(run(method, deltas, weight=1, density=[1, 0.0]), deltas[0])
    with pytest.raises(ParameterError) as error:
        run(method, deltas, weight=1, density=[0.5, 0], semantics="paper")
    assert str(error.value) == (
        "density must lie in (0, 1] with semantics: paper, got 0.0. Leave the expert out instead."
    )


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_contract_gamma_0_is_pruning_by_magnitude(density: float) -> None:
    """The trim of TIES at the same density; by rows in the paper's version."""
    one = noise(1, 10, 20)
    trimmed = run("ties", one, weight=1, density=density)
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        assert torch.equal(run(method, one, weight=1, density=density, gamma=0), trimmed)
        by_row = run(method, one, weight=1, density=density, gamma=0, semantics="paper")
        for row, delta in zip(by_row, one[0], strict=True):
            assert torch.equal(row, run("ties", delta[None], weight=1, density=density))


@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
@pytest.mark.parametrize(("della", "dare"), [("della_linear", "dare_linear"), ("della", "dare_ties")])
def test_contract_epsilon_0_is_dare(della: str, dare: str, semantics: str) -> None:
    """The same masks. (dare_ties by the paper trims besides: trim_density 1 keeps all; it takes the majority's vote, which
    counts only where a sum is 0.)
    """
    deltas = noise(2, 10, 20)
    trim = {"trim_density": 1.0} if dare == "dare_ties" else {}
    a = run(della, deltas, weight=1, density=0.4, epsilon=0, normalize=False, semantics=semantics)
    b = run(dare, deltas, weight=1, density=0.4, normalize=False, semantics=semantics, **trim)
    torch.testing.assert_close(a, b)
    assert torch.equal(a != 0, b != 0)


@pytest.mark.parametrize("factor", [2.0, 0.3, -1.0])
@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"])
def test_contract_scaled_weights_scale_sums(method: str, factor: float) -> None:
    deltas, density = noise(3, 10, 20), {} if method == "task_arithmetic" else {"density": 0.5}
    merged = run(method, deltas, weight=[1, 0.5, 2], **density)
    scaled = run(method, deltas, weight=[factor, 0.5 * factor, 2 * factor], **density)
    torch.testing.assert_close(scaled, factor * merged, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [2.0, 0.3])
@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
@pytest.mark.parametrize("method", ["ties", "della"])
def test_contract_scaled_weights_leave_averages_alone(method: str, semantics: str, factor: float) -> None:
    deltas = noise(3, 10, 20)
    merged = run(method, deltas, weight=[1, 0.5, 2], density=0.5, semantics=semantics)
    scaled = run(method, deltas, weight=[factor, 0.5 * factor, 2 * factor], density=0.5, semantics=semantics)
    torch.testing.assert_close(scaled, merged, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("experts", [2, 3, 5])
def test_contract_model_stock_at_its_limits(experts: int, filter_wise: bool, semantics: str) -> None:
    """c = 1: equal experts, t = 1. c = 0: orthogonal ones, t = 0. c = -1/(N - 1): the corners of a simplex around the
    base, where the denominator is 0: t = 0 too. Their centred unit vectors are e_i - 1/N.
    """
    values: dict[str, Any] = {"filter_wise": filter_wise, "semantics": semantics}
    one = noise(1, 12)
    torch.testing.assert_close(run("model_stock", one.expand(experts, 1, 12), **values), one)
    assert not run("model_stock", 3 * torch.eye(experts)[:, None], **values).any()
    simplex = torch.eye(experts) - 1 / experts
    assert run("model_stock", simplex[:, None], **values).abs().max() < 1e-6
    if experts == 2:
        assert not run("model_stock", torch.stack([one, -one]), **values).any()


def test_contract_model_stock_with_tiny_and_zero_norms() -> None:
    """Two equal deltas of norm 1e-4. mergekit: c = 1e-8 / 1e-6 = 0.01, t = 0.02 / 1.01. Paper: c = 1, the mean, also at
    1e-30. An expert that changed nothing has no direction: c = 0.
    """
    one = torch.tensor([0.6, 0.8])
    deltas = torch.stack([one, one])
    torch.testing.assert_close(run("model_stock", 1e-4 * deltas), 1e-4 * one * (0.02 / 1.01), rtol=1e-4, atol=0)
    torch.testing.assert_close(run("model_stock", 1e-4 * deltas, semantics="paper"), 1e-4 * one)
    torch.testing.assert_close(run("model_stock", 1e-30 * deltas, semantics="paper"), 1e-30 * one, rtol=1e-5, atol=0)
    for semantics in ("mergekit", "paper"):
        assert not run("model_stock", torch.stack([one, 0 * one]), semantics=semantics).any()


@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_contract_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(method: str, semantics: str) -> None:
    deltas, before = noise(2, 150, 400), torch.get_num_threads()
    values: dict[str, Any] = {"weight": [1, 0.5], "density": 0.4, "semantics": semantics}
    try:
        torch.set_num_threads(1)
        alone = run(method, deltas, **values)
        torch.set_num_threads(2)
        assert torch.equal(run(method, deltas, **values), alone)
    finally:
        torch.set_num_threads(before)


# ---- one tensor in memory


def test_merge_tensors_rounds_once_into_the_bases_dtype() -> None:
    """Each step of 1/256 is below bf16's resolution at 1 (1/128), the sum of four is not: 1 + 4/256."""
    base, tuned = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 1 + 1 / 256)
    merged = merge_tensors("task_arithmetic", [tuned] * 4, base, parameters={"weight": 1.0})
    assert merged.dtype == torch.bfloat16
    assert merged.item() == 1 + 4 / 256


def test_merge_tensors_takes_averages_without_a_base() -> None:
    pair = [torch.tensor([1.0]).half(), torch.tensor([2.0]).half()]
    assert merge_tensors("linear", pair, parameters={"weight": 1}).tolist() == [1.5]
    assert merge_tensors("linear", pair, parameters={"weight": 1}).dtype == torch.float16
    with pytest.raises(CheckpointError, match=r"^ties works on deltas: give it the base, too\.$"):
        merge_tensors("ties", pair, parameters={"weight": 1})


def test_contract_other_shapes_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"must have one shape, got \[\(2,\), \(3,\)\]"):
        merge_tensors("linear", [torch.ones(2), torch.ones(3)], parameters={"weight": 1})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", DELTA_METHODS)
def test_stacks_of_other_dtypes_are_merged_in_float32(method: str, dtype: torch.dtype) -> None:
    deltas, density = noise(2, 6, 8).to(dtype), {} if method == "task_arithmetic" else {"density": 0.5}
    merged = find(method)(deltas, view=VIEW, weight=1.0, **density)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, run(method, deltas.float(), weight=1.0, **density))
