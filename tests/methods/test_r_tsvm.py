"""R-TSVM by hand, against the literal steps of its definition in numpy float64, and by property."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from triune.errors import CheckpointError, ParameterError
from triune.methods import find
from triune.methods._lowrank import LowRank
from triune.methods._spec import View
from triune.methods.r_tsvm import r_tsvm
from triune.methods.tsvm import tsvm

gently = settings(max_examples=12, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 3), st.integers(4, 14), st.integers(4, 14))
seeds = st.integers(0, 2**31)
SCOPES = ("entry", "channel", "task")
SPARSITIES = ("hoyer", "near_zero", "spectral")
OFF = {"outlier_strength": 0.0, "rank_strength": 0.0}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def products(experts: int, m: int, n: int, rank: int, seed: int = 0) -> list[LowRank]:
    return [LowRank(random(m, rank, seed=seed + t), random(rank, n, seed=seed + 50 + t)) for t in range(experts)]


def by_factors(factors: list[LowRank | None], shape: tuple[int, ...] = (), **values: Any) -> LowRank | None:
    assert r_tsvm.factors is not None
    merged = r_tsvm.factors(factors, view=View(shape=shape), **r_tsvm.bind(values, len(factors)))
    assert merged is None or isinstance(merged, LowRank)
    return merged


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def numerical_rank(s: np.ndarray, shape: tuple[int, ...]) -> int:
    return int((s > 1e-7 * s[0] * math.sqrt(max(shape))).sum())


def sparsity_of(d: np.ndarray, kind: str) -> float:
    a, n = np.abs(d), d.size
    if kind == "hoyer":
        return float((math.sqrt(n) - a.sum() / math.sqrt((a**2).sum())) / (math.sqrt(n) - 1))
    if kind == "near_zero":
        return float((a <= 0.1 * a.mean()).mean())
    s = np.linalg.svd(d, compute_uv=False)
    rank = numerical_rank(s, d.shape)
    p = s[:rank] ** 2 / (s[:rank] ** 2).sum()
    return float(1 - np.exp(-(p * np.log(p)).sum()) / rank)


def threshold(a: np.ndarray, kappa: float) -> float:
    """Of entries: zeros do not count, and what stands above does not count either, until nothing more does."""
    kept, tau = a[a > 0], math.inf
    for _ in range(10):
        tau = kept.mean() + kappa * kept.std()
        if (kept <= tau).all():
            break
        kept = kept[kept <= tau]
    return float(tau)


def factors_above(x: np.ndarray, tau: float, beta: float) -> np.ndarray:
    return np.where(x > tau, (tau / np.where(x > tau, x, 1)) ** beta, 1.0)


def reference(
    deltas: torch.Tensor,
    kappa: float = 3.0,
    beta: float = 1.0,
    scope: str = "entry",
    sparsity: str = "hoyer",
    gamma: float = 1.0,
) -> tuple[np.ndarray, float]:
    """The definition, literally, and the smallest singular value of U and V."""
    ds = list(deltas.double().numpy())
    shares = []
    for d in ds:
        a = np.abs(d)
        shares.append(a[a > threshold(a, kappa)].sum() / a.sum())
    w = (np.array(shares) + 1e-3) ** -beta
    w = w / w.mean()
    left, values, right = [], [], []
    for t, d in enumerate(ds):
        if scope == "entry":
            damped = d * factors_above(np.abs(d), threshold(np.abs(d), kappa), beta)
        elif scope == "channel":
            p, q = np.linalg.norm(d, axis=1), np.linalg.norm(d, axis=0)
            u, v = (factors_above(x, x.mean() + kappa * x.std(), beta) for x in (p, q))
            damped = u[:, None] * d * v
        else:
            damped = w[t] * d
        u, s, vt = np.linalg.svd(damped, full_matrices=False)
        most = min(numerical_rank(s, d.shape), min(d.shape) // len(ds))
        k = max(1, math.ceil((1 - sparsity_of(damped, sparsity)) ** gamma * most))
        left.append(u[:, :k])
        values.append(s[:k])
        right.append(vt[:k].T)
    smallest, sides = math.inf, []
    for side in (np.hstack(left), np.hstack(right)):
        p, d, qt = np.linalg.svd(side, full_matrices=False)
        smallest = min(smallest, d.min())
        sides.append(p @ qt)
    return sides[0] @ np.diag(np.concatenate(values)) @ sides[1].T, smallest


def test_a_cut_spike_by_hand() -> None:
    """Diagonal (1, 1, 2, 16) in 4 x 4, zeros left out, kappa 1.5: mean 5, std sqrt(262/4 - 25) = 6.364, tau 14.55 < 16.

    Without the 16: mean 4/3, std sqrt(6/3 - 16/9) = 0.4714, tau 2.040, and nothing else stands above that. So the 16
    becomes 2.040; one expert, all ranks kept, so that is the answer.
    """
    delta = torch.diag(torch.tensor([1.0, 1.0, 2.0, 16.0]))
    tau = 4 / 3 + 1.5 * math.sqrt(2 / 9)
    expected = torch.diag(torch.tensor([1.0, 1.0, 2.0, tau]))
    assert torch.allclose(r_tsvm(delta[None], outlier_sigma=1.5, rank_strength=0.0), expected, atol=1e-5)
    stronger = r_tsvm(delta[None], outlier_sigma=1.5, rank_strength=0.0, outlier_strength=-1.0)
    assert torch.allclose(stronger[3, 3], torch.tensor(256 / tau))


def test_a_rank_by_hand() -> None:
    """Diagonal (4, 3, 2, 1) in 4 x 4: Hoyer (4 - 10 / sqrt(30)) / 3 = 0.725, so ceil(0.275 * 4) = 2 values stay.

    Twelve of 16 entries are zero: near_zero 0.75 leaves exactly 1. The energies 16, 9, 4, 1 of 30 have an effective
    rank of exp(1.079) = 2.94 of 4, so `spectral` leaves ceil(2.94) = 3.
    """
    delta = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    for sparsity, k in (("hoyer", 2), ("near_zero", 1), ("spectral", 3)):
        merged = r_tsvm(delta[None], outlier_strength=0.0, sparsity=sparsity)
        kept = torch.arange(4) < k
        assert torch.allclose(merged, delta * kept, atol=1e-5), sparsity


def test_task_weights_by_hand() -> None:
    """One expert without outliers, one whose 3 x 3 block holds a 9 among eight 1s, on separate rows and columns.

    Zeros left out, kappa 2. First: mean 1, std 0, no entry above: o = 0. Second: mean 17/9, mean square 89/9, std
    2.514, tau 6.92; without the 9 it is 1, and the 1s do not stand above that: o = 9/17. Weights 1/0.001 and 1/0.530.
    """
    calm, spiky = torch.zeros(6, 6), torch.zeros(6, 6)
    calm[:3, :3] = 1.0
    spiky[3:, 3:] = 1.0
    spiky[4, 4] = 9.0
    raw = np.array([1 / 0.001, 1 / (9 / 17 + 0.001)])
    w = raw / raw.mean()
    merged = r_tsvm(torch.stack([calm, spiky]), outlier_scope="task", outlier_sigma=2.0, rank_strength=0.0)
    assert torch.allclose(merged, float(w[0]) * calm + float(w[1]) * spiky, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scope", "sparsity"), itertools.product(SCOPES, SPARSITIES))
def test_agrees_with_the_definition_in_float64(scope: str, sparsity: str) -> None:
    for shape, options in [((3, 40, 30), {}), ((2, 18, 36), {"kappa": 1.0, "beta": -0.5, "gamma": 2.0})]:
        deltas = random(*shape, seed=7) ** 3
        expected, smallest = reference(deltas, scope=scope, sparsity=sparsity, **options)
        assert smallest > 1e-2
        names = {"kappa": "outlier_sigma", "beta": "outlier_strength", "gamma": "rank_strength"}
        values: dict[str, Any] = {names[k]: v for k, v in options.items()}
        assert relative(r_tsvm(deltas, outlier_scope=scope, sparsity=sparsity, **values), expected) < 1e-4


@gently
@given(shapes, seeds, st.sampled_from(SCOPES), st.sampled_from(SPARSITIES))
def test_switched_off_it_is_tsvm_bit_for_bit(size: tuple[int, int, int], seed: int, scope: str, sparsity: str) -> None:
    deltas = random(*size, seed=seed)
    assert torch.equal(r_tsvm(deltas, **OFF, outlier_scope=scope, sparsity=sparsity), tsvm(deltas))


@gently
@given(shapes, seeds, st.sampled_from(SCOPES), st.sampled_from(SPARSITIES))
def test_order_and_scale(size: tuple[int, int, int], seed: int, scope: str, sparsity: str) -> None:
    deltas = random(*size, seed=seed)
    assume(reference(deltas, scope=scope, sparsity=sparsity)[1] > 1e-2)
    merged = r_tsvm(deltas, outlier_scope=scope, sparsity=sparsity)
    assert relative(r_tsvm(deltas.flip(0), outlier_scope=scope, sparsity=sparsity), merged) < 1e-4
    assert relative(r_tsvm(deltas * -4.0, outlier_scope=scope, sparsity=sparsity), -4 * merged) < 1e-4


@gently
@given(shapes, seeds, st.sampled_from(SCOPES[1:]), st.sampled_from(SPARSITIES), st.sampled_from((-0.5, 0.0, 1.0)))
def test_dense_and_factor_routes_agree(
    size: tuple[int, int, int], seed: int, scope: str, sparsity: str, beta: float
) -> None:
    experts, m, n = size
    factors = products(experts, m, n, 3, seed)
    deltas = torch.stack([f.dense() for f in factors])
    assume(reference(deltas, 1.0, beta, scope, sparsity)[1] > 1e-2)
    values = {"outlier_scope": scope, "sparsity": sparsity, "outlier_strength": beta, "outlier_sigma": 1.0}
    thin = by_factors([*factors], **values)
    assert thin is not None
    assert relative(thin.dense(), r_tsvm(deltas, **values)) < 1e-5


def test_damped_entries_have_no_factor_route() -> None:
    factors = products(2, 12, 8, 2)
    assert by_factors([*factors]) is None
    assert "raises the rank" in str(r_tsvm.not_low_rank and r_tsvm.not_low_rank(r_tsvm.bind({}, 2)))
    off = by_factors([*factors], **OFF)
    assert off is not None
    assert relative(off.dense(), tsvm(torch.stack([f.dense() for f in factors]))) < 1e-5


@pytest.mark.parametrize(("scope", "sparsity"), itertools.product(SCOPES, SPARSITIES))
def test_unchanged_experts(scope: str, sparsity: str) -> None:
    """All zero: exactly zero. Some zero: they take a share of the rank, nothing else."""
    values = {"outlier_scope": scope, "sparsity": sparsity}
    assert torch.equal(r_tsvm(torch.zeros(3, 8, 6), **values), torch.zeros(8, 6))
    delta = random(9, 9)
    with_none = r_tsvm(torch.stack([torch.zeros(9, 9), delta, torch.zeros(9, 9)]), **OFF)
    assert relative(with_none, tsvm(torch.stack([delta, torch.zeros(9, 9), torch.zeros(9, 9)]))) < 1e-6
    both = r_tsvm(torch.stack([delta, torch.zeros(9, 9)]), **values)
    assert both.isfinite().all()
    if scope == "task":
        assert relative(both, r_tsvm(torch.stack([delta, torch.zeros(9, 9)]), sparsity=sparsity, **NO_DAMPING)) < 1e-6
        nothing = by_factors([None, None], shape=(8, 6), **values)
        assert nothing is not None
        assert nothing.rank == 0


NO_DAMPING = {"outlier_strength": 0.0}


def test_twins_merge_to_themselves() -> None:
    delta = random(30, 20)
    values = {"outlier_sigma": 1.0, "rank_strength": 0.0}
    alone = torch.zeros(2, 30, 20)
    alone[0] = delta
    assert relative(r_tsvm(torch.stack([delta, delta]), **values), r_tsvm(alone, **values)) < 1e-4


def test_orthogonal_experts_add_up() -> None:
    u, v = (torch.linalg.qr(random(18, 18, seed=i))[0] for i in range(2))
    deltas = torch.stack([u[:, b : b + 6] @ v[:, b : b + 6].T for b in (0, 6, 12)])
    assert relative(r_tsvm(deltas, **OFF), deltas.sum(0)) < 1e-5


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize(("scope", "sparsity"), itertools.product(SCOPES, SPARSITIES))
def test_thin_matrices(shape: tuple[int, int], scope: str, sparsity: str) -> None:
    assert r_tsvm(random(1, *shape), outlier_scope=scope, sparsity=sparsity).isfinite().all()
    assert torch.allclose(r_tsvm(random(1, *shape), **OFF), random(1, *shape)[0], atol=1e-5)


def moved_by_a_spike(merge: Any, experts: int = 3, n: int = 256, **values: Any) -> float:
    """How far the other entries move, relative to their norm, when one grows by 1e4 standard deviations."""
    deltas = random(experts, n, n)
    spiked = deltas.clone()
    spiked[0, 7, 11] += 1e4 * deltas[0].std()
    before, after = merge(deltas, **values), merge(spiked, **values)
    before[7, 11] = after[7, 11] = 0
    return relative(after, before)


def test_a_spike_moves_the_rest_of_one_expert_by_less_than_a_percent() -> None:
    assert moved_by_a_spike(r_tsvm, experts=1) < 0.01


def test_a_spike_moves_a_merge_by_percents_and_tsvm_by_many_times_its_norm() -> None:
    """Three random experts fill all directions, so that the smallest change turns the ones that are cut off last."""
    assert moved_by_a_spike(tsvm) > 10
    assert moved_by_a_spike(r_tsvm) < 0.03
    assert moved_by_a_spike(r_tsvm, rank_strength=0.0) < 0.05


def test_nan_is_refused() -> None:
    deltas = random(2, 6, 6)
    deltas[0, 0, 0] = math.nan
    for scope in SCOPES:
        with pytest.raises(CheckpointError, match="NaN"):
            r_tsvm(deltas, outlier_scope=scope)


def test_ranges() -> None:
    for wrong in ({"outlier_strength": 1.5}, {"rank_strength": -1}, {"polar_tol": 1.0}, {"outlier_scope": "row"}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            r_tsvm(torch.zeros(2, 4, 4), **wrong)


def test_workspace_counts_the_damped_copy() -> None:
    def bytes_for(**values: Any) -> int:
        assert r_tsvm.workspace is not None
        return r_tsvm.workspace(r_tsvm.bind(values, 3), 3, (4096, 1024))

    assert bytes_for() > bytes_for(outlier_scope="task") == bytes_for(outlier_strength=0.0) > 3 * 4096 * 1024 * 4


def test_its_page_says_what_it_is() -> None:
    assert find("resm") is find("r_tsvm") is r_tsvm
    assert "our reconstruction" in r_tsvm.doc
    assert "no numerical parity" in r_tsvm.doc
