"""TSVM by hand, against the literal steps of the paper in numpy float64, and by property."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import CheckpointError
from triune.methods import find
from triune.methods._lowrank import LowRank
from triune.methods._spec import View
from triune.methods.tsvm import tsvm

gently = settings(max_examples=15, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 3), st.integers(4, 14), st.integers(4, 14))
seeds = st.integers(0, 2**31)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def products(experts: int, m: int, n: int, rank: int, seed: int = 0) -> list[LowRank]:
    return [LowRank(random(m, rank, seed=seed + t), random(rank, n, seed=seed + 50 + t)) for t in range(experts)]


def by_factors(factors: list[LowRank | None], shape: tuple[int, ...] = (), name: str = "", **values: object) -> LowRank:
    assert tsvm.factors is not None
    merged = tsvm.factors(factors, view=View(name, shape=shape), **tsvm.bind(values, len(factors)))
    assert isinstance(merged, LowRank)
    return merged


def relative(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def reference(deltas: torch.Tensor, weight: list[float]) -> tuple[np.ndarray, float]:
    """Algorithm 1, step by step, and the smallest singular value of U and V that was kept."""
    left, values, right = [], [], []
    for delta, w in zip(deltas.double().numpy(), weight, strict=True):
        if delta.any():
            u, s, vt = np.linalg.svd(delta, full_matrices=False)
            rank = int((s > 1e-7 * s[0] * math.sqrt(max(delta.shape))).sum())
            k = min(rank, min(delta.shape) // len(deltas))
            left.append(u[:, :k])
            values.append(w * s[:k])
            right.append(vt[:k].T)
    smallest = math.inf
    sides = []
    for side in (np.hstack(left), np.hstack(right)):
        p, d, qt = np.linalg.svd(side, full_matrices=False)
        keep = d > 1e-6 * d[0]
        smallest = min(smallest, d[keep].min())
        sides.append(p[:, keep] @ qt[keep])
    return sides[0] @ np.diag(np.concatenate(values)) @ sides[1].T, smallest


def test_two_overlapping_directions_by_hand() -> None:
    """u_1 = (1, 0), u_2 = (cos 60, sin 60), v_1 = (1, 0), v_2 = (0, 1), both of strength 4.

    The nearest orthonormal pair to u_1, u_2 is turned outwards by 15 degrees each: (cos 15, -sin 15), (cos 75, sin 75).
    V is orthonormal already. So the columns of the merged delta are those two, times 4.
    """
    one = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    two = torch.tensor([[0.0, 2.0], [0.0, 2.0 * math.sqrt(3)]])
    d15, d75 = math.radians(15), math.radians(75)
    expected = 4 * torch.tensor([[math.cos(d15), math.cos(d75)], [-math.sin(d15), math.sin(d75)]])
    assert torch.allclose(tsvm(torch.stack([one, two])), expected, atol=1e-5)
    assert torch.allclose(tsvm(torch.stack([one, two]), scaling=0.5), expected / 2, atol=1e-5)
    weighted = tsvm(torch.stack([one, two]), weight=[1.0, 0.25])
    assert torch.allclose(weighted, expected * torch.tensor([1.0, 0.25]), atol=1e-5)


@pytest.mark.parametrize(("experts", "m", "n"), [(1, 20, 12), (2, 40, 25), (3, 26, 40), (3, 32, 33), (4, 60, 11)])
def test_agrees_with_the_paper_in_float64(experts: int, m: int, n: int) -> None:
    """Wherever the problem is well posed, over spectra of two orders of magnitude."""
    weight, met = [0.5 + t for t in range(experts)], 0
    for seed in range(8):
        sides = (torch.linalg.qr(random(experts, x, min(m, n), seed=seed + x)).Q for x in (m, n))
        deltas = (next(sides) * torch.logspace(0, -2, min(m, n))) @ next(sides).mT
        expected, smallest = reference(deltas, weight)
        if smallest > 1e-2:
            met += 1
            assert relative(tsvm(deltas, weight=weight), expected) < 1e-4
    assert met >= 2


def one_huge_entry(deltas: torch.Tensor) -> torch.Tensor:
    deltas[0, 3, 5] += 1e4
    return deltas


NOISE = random(3, 192, 192)


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param(NOISE, id="nothing in common"),
        pytest.param(random(192, 192, seed=9) + 0.1 * NOISE, id="nearly the same"),
        pytest.param(random(3, 192, 8, seed=9) @ random(3, 8, 192, seed=8) + 0.01 * NOISE, id="a flat rest below few"),
        pytest.param(one_huge_entry(NOISE.clone()), id="one huge entry"),
    ],
)
def test_experts_that_are_hard_to_make_orthogonal(deltas: torch.Tensor) -> None:
    """Square, at full rank, so that the stacked vectors have small singular values.

    With (U^T U)^(-1/2) in float32, experts that are nearly the same merged wrong by 4e-4, the others by 5e-6.
    """
    expected, smallest = reference(deltas, [1.0, 1.0, 1.0])
    assert 1e-5 < smallest < 0.02
    assert relative(tsvm(deltas), expected) < 2e-6


def test_agrees_with_the_paper_on_low_rank_updates() -> None:
    """As products and as matrices, whose numerical rank must be seen."""
    factors = products(3, 60, 40, 5)
    deltas = torch.stack([f.dense() for f in factors])
    expected, smallest = reference(deltas, [1.0, 1.0, 1.0])
    assert smallest > 1e-2
    assert relative(tsvm(deltas), expected) < 1e-4
    assert relative(by_factors([*factors]).dense(), expected) < 1e-4
    assert by_factors([*factors]).rank == 15


@gently
@given(sizes, seeds)
def test_dense_and_factor_routes_agree(size: tuple[int, int, int], seed: int) -> None:
    experts, m, n = size
    factors = products(experts, m, n, 3, seed)
    deltas = torch.stack([f.dense() for f in factors])
    if reference(deltas, [1.0] * experts)[1] > 1e-2:
        assert relative(by_factors([*factors]).dense(), tsvm(deltas)) < 1e-5


@gently
@given(sizes, seeds)
def test_order_and_scale_of_the_experts(size: tuple[int, int, int], seed: int) -> None:
    experts, m, n = size
    deltas = random(experts, m, n, seed=seed)
    merged = tsvm(deltas)
    if reference(deltas, [1.0] * experts)[1] > 1e-2:
        assert relative(tsvm(deltas.flip(0)), merged) < 1e-4
        assert relative(tsvm(deltas * 1e-6) * 1e6, merged) < 1e-4


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 7), (7, 1), (1, 1)])
def test_one_expert_comes_back(shape: tuple[int, int]) -> None:
    delta = random(*shape)
    assert relative(tsvm(delta[None]), delta) < 1e-5


def test_nothing_changed() -> None:
    assert torch.equal(tsvm(torch.zeros(3, 8, 6)), torch.zeros(8, 6))
    nothing = by_factors([None, None], shape=(8, 6))
    assert nothing.rank == 0
    assert torch.equal(nothing.dense(), torch.zeros(8, 6))


def test_an_unchanged_expert_rotates_no_other_but_keeps_its_share_of_the_rank() -> None:
    """Of rank 6, a third each: the one expert that changed keeps two triplets, exactly as they were."""
    delta = random(8, 6)
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    cut = (u[:, :2] * s[:2]) @ vt[:2]
    assert relative(tsvm(torch.stack([torch.zeros(8, 6), delta, torch.zeros(8, 6)])), cut) < 1e-5
    factor = LowRank(delta, torch.eye(6))
    assert relative(by_factors([None, factor, LowRank(delta, torch.zeros(6, 6))]).dense(), cut) < 1e-5


@pytest.mark.parametrize("copy", [1.0, 1.1, 1 / 3])
def test_twins_merge_to_themselves(copy: float) -> None:
    """Not to themselves plus noise. A copy scaled in float32 is a twin up to rounding; the mean strength is left."""
    delta = random(30, 20) * torch.logspace(0, -2, 20)
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    cut = (u[:, :10] * s[:10]) @ vt[:10]
    assert relative(tsvm(torch.stack([delta, delta * copy])), cut * (1 + copy) / 2) < 1e-4


@gently
@given(st.integers(2, 4), seeds)
def test_orthogonal_experts_add_up(experts: int, seed: int) -> None:
    side = 5 * experts
    u, v = (torch.linalg.qr(random(side, side, seed=seed + i))[0] for i in range(2))
    blocks = [slice(5 * t, 5 * t + 5) for t in range(experts)]
    deltas = torch.stack([(u[:, b] * torch.linspace(3, 1, 5)) @ v[:, b].T for b in blocks])
    assert relative(tsvm(deltas), deltas.sum(0)) < 1e-5


def test_what_is_no_matrix_is_averaged() -> None:
    """Weighted mean times scaling: (2 * (1 + 3 * 2) / 2, ...) = (7, ...)."""
    vector = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    kind = {"weight": [1.0, 3.0], "scaling": 2.0}
    assert torch.equal(tsvm(vector, **kind), torch.tensor([7.0, 14.0]))
    assert torch.equal(tsvm(vector, **kind, vector_rule="sum"), torch.tensor([14.0, 28.0]))
    stacked = random(2, 3, 4, 5)
    assert torch.allclose(tsvm(stacked), stacked.mean(0))
    assert tsvm(torch.tensor([1.0, 3.0])).item() == 2.0
    narrow = random(3, 2, 50)  # three experts cannot share two directions
    assert torch.allclose(tsvm(narrow), narrow.mean(0))


def test_embeddings_are_averaged_unless_asked_for() -> None:
    deltas, view = random(2, 8, 6), View("model.embed_tokens.weight")
    assert torch.allclose(tsvm(deltas, view=view), deltas.mean(0))
    assert torch.equal(tsvm(deltas, view=view, embeddings="svd"), tsvm(deltas))
    factors = products(2, 8, 6, 2)
    thin = by_factors([*factors], name=view.tensor, weight=[1.0, 3.0])
    assert relative(thin.dense(), (factors[0].dense() + 3 * factors[1].dense()) / 2) < 1e-6


@pytest.mark.parametrize(
    ("name", "shape", "values", "grain"),
    [
        ("model.layers.0.mlp.up_proj.weight", (8, 6), {}, "tensor"),
        ("model.norm.weight", (8,), {}, "entry"),
        ("lm_head.weight", (8, 6), {}, "entry"),
        ("lm_head.weight", (8, 6), {"embeddings": "svd"}, "tensor"),
        ("model.layers.0.mlp.router.weight", (2, 6), {}, "entry"),
    ],
)
def test_grain(name: str, shape: tuple[int, ...], values: dict[str, object], grain: str) -> None:
    assert tsvm.grain_at(tsvm.bind(values, 3), View(name, shape=shape)) == grain


def test_blocks_of_an_embedding_follow_the_whole_shape() -> None:
    """A block may look like a matrix, or like a vector; what counts is the tensor that it comes from."""
    deltas = random(2, 8, 6)
    view = View("lm_head.weight", start=12, shape=(8, 6))
    bound = tsvm.bind({}, 2)
    assert torch.allclose(tsvm.function(deltas[:, 2:4], view=view, **bound), deltas[:, 2:4].mean(0))
    assert torch.allclose(
        tsvm.function(deltas[:, 2:4].flatten(1), view=view, **bound), deltas[:, 2:4].mean(0).flatten()
    )


def test_nan_is_refused() -> None:
    deltas = random(2, 5, 5)
    deltas[1, 2, 3] = math.nan
    with pytest.raises(CheckpointError, match="NaN"):
        tsvm(deltas)


def test_same_input_same_bytes() -> None:
    deltas = random(3, 50, 40)
    before = deltas.clone()
    assert torch.equal(tsvm(deltas), tsvm(deltas))
    assert torch.equal(deltas, before)


def test_it_is_in_the_table() -> None:
    assert find("tsvm") is tsvm
    assert tsvm.summary.startswith("Keep each expert's leading singular triplets")


def test_decompositions_that_are_kept_serve_any_weight_and_scaling() -> None:
    """Merged twice from the same parts, as a page does where a point is dragged: bit for bit what a new merge gives."""
    deltas = torch.randn(3, 12, 9, generator=torch.Generator().manual_seed(5))
    view = View("w", shape=(12, 9))
    assert tsvm.parts is not None
    parts = tsvm.parts(deltas, view=view, polar_tol=1e-6)
    for weight, scaling in (((1.0, 0.5, 0.0), 2.0), ((0.2, 0.3, 0.5), 0.7)):
        merged = parts.merged(weight, scaling, keep=True).dense()
        assert torch.equal(merged, tsvm(deltas, view=view, weight=weight, scaling=scaling))
