"""The polar factor by matrix products alone, as a GPU computes it, against the one by eigendecomposition."""

from __future__ import annotations

import math

import pytest
import torch

from triune.methods._spectral import newton_schulz, polar


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(m: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(random(m, k, seed=seed))[0]


def with_condition(m: int, k: int, condition: float) -> torch.Tensor:
    """Singular values that fall evenly, on a logarithmic scale, from one to 1 / condition."""
    values = torch.logspace(0, -math.log10(condition), k, dtype=torch.float64)
    return ((orthonormal(m, k) * values) @ orthonormal(k, k, seed=1).T).float()


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("condition", [1.0, 3.0, 10.0, 50.0])
@pytest.mark.parametrize(("m", "k"), [(96, 96), (96, 60), (40, 2)])
def test_it_finds_the_polar_factor(m: int, k: int, condition: float, scale: float) -> None:
    a = with_condition(m, k, condition) * scale
    found = newton_schulz(a)
    assert found is not None
    assert torch.allclose(found, polar(a.clone(), 1e-6), rtol=0, atol=1e-5)


def test_experts_side_by_side() -> None:
    """Three random subspaces of a third of the rank that TSVM would give each."""
    a = torch.cat([orthonormal(90, 10, seed) for seed in range(3)], dim=1).float()
    found = newton_schulz(a)
    assert found is not None
    assert torch.allclose(found, polar(a.clone(), 1e-6), rtol=0, atol=1e-5)


def test_it_hands_over_what_is_nearly_singular() -> None:
    """Experts that are equal, opposite, or nearly equal; three that fill the whole space; zeros."""
    one = orthonormal(30, 5)
    for two in (one, -one, one + 1e-3 * random(30, 5, seed=1), torch.zeros(30, 5)):
        assert newton_schulz(torch.cat([one, two], dim=1).float()) is None
    assert newton_schulz(torch.cat([orthonormal(300, 100, seed) for seed in range(3)], dim=1).float()) is None
    assert newton_schulz(torch.zeros(4, 2)) is None


def test_it_is_right_or_silent() -> None:
    """Also where it begins to fail."""
    silent = []
    for condition in torch.logspace(1, 4, 25).tolist():
        a = with_condition(96, 60, condition)
        found = newton_schulz(a)
        silent.append(found is None)
        assert found is None or torch.allclose(found, polar(a.clone(), 1e-6), rtol=0, atol=1e-5)
    assert silent == sorted(silent)
    assert 0 < sum(silent) < 25


@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 0.1, 0.5])
@pytest.mark.parametrize("condition", [5.0, 50.0, 1e3, 1e7])
def test_polar_is_the_same_on_a_gpu(condition: float, tolerance: float) -> None:
    """Also where directions are dropped: 50 is well-conditioned enough, yet below a tolerance of 0.1."""
    a = with_condition(60, 40, condition)
    there = a.clone().as_subclass(OnGpu)
    found = polar(there, tolerance)
    assert found.data_ptr() == there.data_ptr()
    assert torch.allclose(found.as_subclass(torch.Tensor), polar(a.clone(), tolerance), rtol=0, atol=1e-5)
