"""Measures of spectra, by hand and against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from triune.diagnostics.spectra import overlap, spectrum, task_interference
from triune.methods._lowrank import LowRank


def diagonal(*values: float, size: int = 4) -> torch.Tensor:
    return torch.diag(torch.tensor([*values, *[0.0] * (size - len(values))]))


def test_ranks_by_hand() -> None:
    """Values 3 and 1: stable rank (9 + 1) / 9; shares 3/4 and 1/4; the first of them holds 9 / 10 of the energy."""
    found = spectrum(diagonal(3, 1), lambda values: 1)
    assert found is not None
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert len(found.values) == 2
    assert found.stable_rank == pytest.approx(10 / 9)
    assert found.effective_rank == pytest.approx(math.exp(entropy))
    assert found.energy_kept == pytest.approx(0.9)
    assert found.knots() == [(1, pytest.approx(1.0)), (2, pytest.approx(1 / 3))]


def test_against_numpy() -> None:
    d = torch.randn(40, 25, generator=torch.Generator().manual_seed(0))
    found = spectrum(d, lambda values: 8)
    assert found is not None
    np.testing.assert_allclose(found.values.numpy(), np.linalg.svd(d.double().numpy())[1], rtol=1e-6)
    assert len(found.leading.values) == 8


def test_factors_and_matrix_agree() -> None:
    draw = torch.Generator().manual_seed(1)
    low = LowRank(torch.randn(30, 4, generator=draw), torch.randn(4, 20, generator=draw))
    one, two = spectrum(low, lambda v: 3), spectrum(low.dense(), lambda v: 3)
    assert one is not None
    assert two is not None
    torch.testing.assert_close(one.values, two.values, rtol=1e-5, atol=1e-8)
    assert overlap(one.leading, two.leading) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))


def test_nothing_has_no_spectrum() -> None:
    assert spectrum(torch.zeros(3, 3), lambda values: 1) is None


def test_overlap_of_orthogonal_and_of_half_shared_spaces() -> None:
    parts = [spectrum(m, lambda v: 2) for m in (diagonal(2, 1), torch.diag(torch.tensor([0.0, 3, 1, 0])))]
    a, b = (p.leading for p in parts if p)
    assert overlap(a, b) == (pytest.approx(0.5), pytest.approx(0.5))
    apart = spectrum(torch.diag(torch.tensor([0.0, 0, 2, 1])), lambda v: 2)
    assert apart is not None
    assert overlap(a, apart.leading) == (pytest.approx(0), pytest.approx(0))
    assert task_interference([a, apart.leading]) == pytest.approx(0)
    assert task_interference([a, a]) == pytest.approx(1)
    assert task_interference([]) == 0.0
