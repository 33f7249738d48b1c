"""The linear algebra of the TSVM family, by hand and against numpy's float64 SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from triune.errors import CheckpointError
from triune.methods import _outliers, _spectral
from triune.methods._lowrank import LowRank


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(m: int, n: int, rank: int, seed: int = 0) -> LowRank:
    return LowRank(random(m, rank, seed=seed), random(rank, n, seed=seed + 100))


def rebuild(part: _spectral.Components | None) -> torch.Tensor:
    assert part is not None
    return (part.left * part.values.float()) @ part.right.T


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (7, 7), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("k", [1, 3])
def test_truncated_svd_agrees_with_numpy(shape: tuple[int, int], k: int) -> None:
    k = min(k, *shape)
    delta = random(*shape)
    u, s, vt = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    part = _spectral.truncated_svd(delta, lambda values: k)
    assert part is not None
    np.testing.assert_allclose(part.values.numpy(), s[:k], rtol=1e-10)
    np.testing.assert_allclose(rebuild(part).numpy(), (u[:, :k] * s[:k]) @ vt[:k], atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (7, 7)])
def test_a_stack_decomposes_as_its_matrices_do(shape: tuple[int, int]) -> None:
    """What a GPU does: zero, each with a rank of its own, and one of which nothing is kept."""
    deltas = [random(*shape), torch.zeros(shape), random(*shape, seed=1), random(*shape, seed=2)]
    rules: list[_spectral.RankRule] = [lambda values, k=k: k for k in (2, 1, 3, 0)]  # type: ignore[misc]
    together = _spectral.svds_at_once(deltas, rules)
    alone = [_spectral.truncated_svd(delta, rule) for delta, rule in zip(deltas, rules, strict=True)]
    assert [part and len(part.values) for part in together] == [2, None, 3, None]
    for one, other in zip(together, alone, strict=True):
        assert (one is None) == (other is None)
        if one and other:
            assert relative(rebuild(one), rebuild(other)) < 1e-6
            torch.testing.assert_close(one.values, other.values, rtol=1e-12, atol=0)


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def test_on_a_gpu_small_matrices_are_decomposed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps its place, and what is larger comes one by one."""
    calls: list[int] = []
    inner = _spectral.svds_at_once
    monkeypatch.setattr(_spectral, "svds_at_once", lambda *a: calls.append(len(a[0])) or inner(*a))
    deltas = [None, random(9, 5), torch.zeros(9, 5), random(9, 5, seed=1)]
    rules = [lambda values: 2, lambda values: 2, lambda values: 2, None]
    plain = list(zip(deltas, rules, strict=True))
    there = [(d if d is None else d.as_subclass(OnGpu), rule) for d, rule in plain]
    alone = _spectral.truncated_svds(plain)
    assert calls == []
    for most, number in ((5, 2), (4, 0)):
        monkeypatch.setattr(_spectral, "TOGETHER", most)
        calls.clear()
        found = _spectral.truncated_svds(there)
        assert sum(calls) == number
        assert [part is None for part in found] == [True, False, True, True]
        assert relative(rebuild(found[1]).as_subclass(torch.Tensor), rebuild(alone[1])) < 1e-6


def test_what_a_gpu_finds_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit vectors and the diagonal: orthonormal, and wrong."""
    a = _spectral.gram(random(20, 4))
    values, _ = _spectral.eigh(a.as_subclass(OnGpu))
    assert torch.equal(values, torch.linalg.eigh(a)[0])
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (a.diagonal(), torch.eye(4, dtype=a.dtype)))
    with pytest.raises(torch.linalg.LinAlgError):
        _spectral.eigh(a.as_subclass(OnGpu))
    assert torch.equal(_spectral.eigh(a)[0], a.diagonal())  # LAPACK is believed


def test_which_decompositions_solve() -> None:
    a = torch.stack([_spectral.gram(random(20, 6, seed=seed)) for seed in range(3)])
    values, vectors = torch.linalg.eigh(a)
    assert _spectral.solves(a, values, vectors)
    assert _spectral.solves(a[0], values[0], vectors[0])
    assert _spectral.solves(torch.zeros_like(a), torch.zeros_like(values), vectors)
    for wrong in (values.flip(-1), values * (1 + 1e-6), values * math.nan):
        assert not _spectral.solves(a, torch.stack([values[0], wrong[1], values[2]]), vectors)
    assert not _spectral.solves(a, values, torch.stack([vectors[0], vectors[1], vectors[2] * 0.999]))


def test_every_decomposition_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    inner = _spectral.eigh
    monkeypatch.setattr(_spectral, "eigh", lambda a: calls.append(tuple(a.shape)) or inner(a))
    _spectral.truncated_svd(random(9, 5), lambda values: 1)
    _spectral.svds_at_once([random(5, 9), random(5, 9)], [lambda values: 1] * 2)
    _spectral.polar(random(9, 4), 1e-6)
    assert calls == [(5, 5), (2, 5, 5), (4, 4)]


def test_a_stack_with_nan_is_refused() -> None:
    with pytest.raises(CheckpointError, match="NaN"):
        _spectral.svds_at_once([random(3, 2), torch.full((3, 2), math.nan)], [lambda values: 1] * 2)


def test_small_singular_values_keep_orthonormal_vectors() -> None:
    """A spectrum over five orders of magnitude: a float32 Gram matrix would lose its lower half."""
    u, v = torch.linalg.qr(random(40, 20))[0], torch.linalg.qr(random(30, 20, seed=1))[0]
    delta = (u * torch.logspace(0, -5, 20)) @ v.T
    part = _spectral.truncated_svd(delta, lambda values: 20)
    assert part is not None
    for side in (part.left, part.right):
        assert torch.allclose(side.T @ side, torch.eye(20), atol=1e-5)


@pytest.mark.parametrize(("m", "n", "rank"), [(12, 8, 3), (8, 12, 3), (4, 20, 6), (20, 4, 6), (5, 5, 8)])
def test_products_decompose_like_their_matrix(m: int, n: int, rank: int) -> None:
    """Also where a side is shorter than the rank."""
    delta = product(m, n, rank)
    full = min(m, n, rank)
    thin = _spectral.truncated_svd(delta, lambda values: full)
    dense = _spectral.truncated_svd(delta.dense(), lambda values: full)
    assert relative(rebuild(thin), rebuild(dense)) < 1e-5


def test_zero_has_no_components() -> None:
    left, right = random(5, 2), random(2, 4)
    cancelling = LowRank(torch.cat([left, left], 1), torch.cat([right, -right], 0))
    for delta in (torch.zeros(5, 4), LowRank(torch.zeros(5, 0), torch.zeros(0, 4)), cancelling):
        assert _spectral.truncated_svd(delta, lambda values: 1) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    delta = torch.eye(3)
    delta[1, 2] = bad
    for broken in (delta, LowRank(delta, torch.eye(3))):
        with pytest.raises(CheckpointError, match="A delta holds NaN or infinity"):
            _spectral.truncated_svd(broken, lambda values: 1)


def test_polar_of_a_pair_of_vectors_by_hand() -> None:
    """Two unit vectors at the angle 2a, mirrored on the x axis: (cos a, +-sin a).

    The nearest orthonormal pair keeps the symmetry, so it is (1, 1) / sqrt(2) and (1, -1) / sqrt(2), whatever a is.
    """
    for a in (1.0, 0.1, 0.001):
        pair = torch.tensor([[math.cos(a), math.cos(a)], [math.sin(a), -math.sin(a)]])
        half = math.sqrt(0.5)
        assert torch.allclose(_spectral.polar(pair, 1e-6), torch.tensor([[half, half], [half, -half]]), atol=1e-4)


def test_polar_drops_what_it_cannot_tell_apart() -> None:
    """A direction twice: U^T U = [[1, 1], [1, 1]], whose root is itself / sqrt(2): each becomes e / sqrt(2)."""
    twice = torch.tensor([[1.0, 1.0], [0.0, 1e-7]])
    assert torch.allclose(_spectral.polar(twice, 0.0), torch.tensor([[1.0, 1.0], [0.0, 0.0]]) / math.sqrt(2), atol=1e-6)


@pytest.mark.parametrize(("m", "n"), [(300, 40), (40, 40), (30, 40)])
@pytest.mark.parametrize("smallest", [1e-4, 0.5])
def test_polar_agrees_with_an_svd_in_float64(m: int, n: int, smallest: float) -> None:
    """Also where all but one direction are weak, and where a matrix has more columns than rows."""
    r = min(m, n)
    u, v = torch.linalg.qr(random(m, r).double())[0], torch.linalg.qr(random(n, r, seed=1).double())[0]
    values = torch.cat([torch.ones(1), torch.full((r - 1,), smallest)]).double()
    a = ((u * values) @ v.T).float()
    p, d, qt = np.linalg.svd(a.double().numpy(), full_matrices=False)
    keep = d > 1e-5 * d[0]
    assert relative(_spectral.polar(a, 1e-6).double(), torch.from_numpy(p[:, keep] @ qt[keep])) < 1e-6


def test_a_rule_may_keep_nothing() -> None:
    for delta in (random(5, 4), random(5, 1), product(5, 4, 2)):
        assert _spectral.truncated_svd(delta, lambda values: 0) is None


def test_statistics_by_hand() -> None:
    """Magnitudes 0, 1, 3, 4. Without the zero: mean 8/3, variance 26/3 - 64/9, so 3.91 at one sigma, below the 4.

    Without that: mean 2, deviation 1, so 3, and 3 does not stand above it; the 4 holds half of the sum of 8.
    Hoyer: (2 - 8 / sqrt(26)) / (2 - 1). One of four entries is at most 0.2.
    """
    delta = torch.tensor([[0.0, -1.0], [3.0, -4.0]])
    assert _outliers.magnitude_threshold(delta, 1.0) == pytest.approx(3.0)
    assert _outliers.hoyer(delta) == pytest.approx(2 - 8 / math.sqrt(26))
    assert _outliers.near_zero(delta) == 0.25
    assert _outliers.outlier_share(delta, 1.0) == 0.5


def test_statistics_of_a_product_are_those_of_its_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of a few rows, too."""
    delta = product(50, 30, 4)
    whole = [f(delta.dense()) for f in (_outliers.hoyer, _outliers.near_zero)]
    whole.append(_outliers.outlier_share(delta.dense(), 3.0))
    monkeypatch.setattr(_outliers, "BLOCK", 70)
    parts = [f(delta) for f in (_outliers.hoyer, _outliers.near_zero)]
    parts.append(_outliers.outlier_share(delta, 3.0))
    assert parts == pytest.approx(whole, rel=1e-5)
    thin, dense = (_outliers.damp_channels(d, 1.0, 1.0) for d in (delta, delta.dense()))
    assert isinstance(thin, LowRank)
    assert isinstance(dense, torch.Tensor)
    assert relative(thin.dense(), dense) < 1e-5


def test_panels_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = random(90, 70)
    whole = rebuild(_spectral.truncated_svd(delta, lambda values: 20))
    monkeypatch.setattr(_spectral, "PANEL", 300)
    assert relative(rebuild(_spectral.truncated_svd(delta, lambda values: 20)), whole) < 1e-6


def test_tiny_deltas_have_statistics_too() -> None:
    """Squares of 1e-25 vanish in float32."""
    delta = random(6, 5)
    assert _outliers.hoyer(delta * 1e-25) == pytest.approx(_outliers.hoyer(delta), rel=1e-5)


def test_channels_by_hand() -> None:
    """Row norms 5, 5, 5, 35 (3-4-5 triangles): mean 12.5, std 12.99; with half a sigma the last row shrinks to 18.995.

    Columns: norms sqrt(468) and sqrt(832), mean 25.2, std 3.6, so only the second exceeds 27.0.
    """
    delta = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [21.0, 28.0]])
    row = (12.5 + 0.5 * math.sqrt(3 * 7.5**2 + 22.5**2) / 2) / 35
    first, second = math.sqrt(468), math.sqrt(832)
    column = ((first + second) / 2 + 0.5 * (second - first) / 2) / second
    expected = delta * torch.tensor([[1.0], [1.0], [1.0], [row]]) * torch.tensor([1.0, column])
    damped = _outliers.damp_channels(delta, 0.5, 1.0)
    assert isinstance(damped, torch.Tensor)
    assert torch.allclose(damped, expected, rtol=1e-6)
