"""Statistics of a delta's entries, and the damping of those that stand out: what R-TSVM does before it decomposes.

Every function takes a delta either as a matrix or as a :class:`LowRank` product, whose matrix is never built.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from triune._lazy import torch
from triune.methods._lowrank import LowRank
from triune.methods._spectral import numerical_rank, row_slices

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from triune.methods._spectral import Delta

BLOCK = 1 << 18
"""Entries handled at a time, so that a block stays in the processor's cache."""
MOST_ROUNDS = 10
"""Of the search for outliers."""


# --- statistics of the entries ------------------------------------------------------------------------------------


def row_blocks(delta: Delta) -> Iterator[torch.Tensor]:
    """The rows of a delta, a few at a time."""
    for rows in row_slices(delta.shape, BLOCK):
        yield delta.rows(rows.start, rows.stop) if isinstance(delta, LowRank) else delta[rows]


def _total(numbers: Iterable[torch.Tensor]) -> float:
    """Their sum in float64, read back from the device once."""
    return float(torch.stack([x.double() for x in numbers]).sum())


def _norms(delta: Delta) -> tuple[float, float]:
    """Sum of the magnitudes, and root of the sum of their squares."""
    norms = [(b.abs().sum(), torch.linalg.vector_norm(b, dtype=torch.float64) ** 2) for b in row_blocks(delta)]
    return _total(one for one, _ in norms), math.sqrt(_total(square for _, square in norms))


def magnitude_threshold(delta: Delta, sigmas: float) -> float:
    """Mean plus ``sigmas`` population standard deviations of the magnitudes that are not zero.

    Measured again without what stands above it, until nothing more does: an outlier would otherwise hide in the
    deviation that it causes. Zeros do not count, or the few entries of a sparse delta would all be outliers.
    """
    threshold, count = math.inf, -1
    for _ in range(MOST_ROUNDS):
        moments = torch.stack([_moments(block.abs(), threshold) for block in row_blocks(delta)]).sum(0)
        before, (count, one, two) = count, moments.tolist()
        if count in (0, before):
            break
        mean = one / count
        threshold = mean + sigmas * math.sqrt(max(two / count - mean**2, 0.0))
    return threshold if count else 0.0


def _moments(magnitudes: torch.Tensor, threshold: float) -> torch.Tensor:
    """Number, sum and sum of squares of those up to the threshold that are not zero."""
    kept = torch.where(magnitudes <= threshold, magnitudes, 0).double()
    return torch.stack([kept.count_nonzero(), kept.sum(), kept.square_().sum()])


def outlier_share(delta: Delta, sigmas: float) -> float:
    """Share of the sum of magnitudes that entries above the threshold hold.

    >>> outlier_share(torch.tensor([[1.0, -1.0, 1.0, -9.0]]), 1.0)  # above 3 + sqrt(12), then above 1 + 0
    0.75
    """
    threshold = magnitude_threshold(delta, sigmas)
    above = _total(torch.where(a > threshold, a, 0).sum() for a in (b.abs() for b in row_blocks(delta)))
    return above / (_norms(delta)[0] or 1.0)


def hoyer(delta: Delta) -> float:
    """Hoyer's sparsity: 0 where all magnitudes are equal, 1 where a single entry is not zero.

    >>> hoyer(torch.tensor([[3.0, -3.0], [3.0, 3.0]])), hoyer(torch.tensor([[0.0, 5.0], [0.0, 0.0]]))
    (0.0, 1.0)
    """
    count = delta.shape[0] * delta.shape[1]
    one, two = _norms(delta)
    if two == 0:
        return 1.0
    return (math.sqrt(count) - one / two) / (math.sqrt(count) - 1) if count > 1 else 0.0


def near_zero(delta: Delta) -> float:
    """Share of the entries with a magnitude of at most a tenth of the mean magnitude."""
    count = delta.shape[0] * delta.shape[1]
    threshold = 0.1 * _norms(delta)[0] / count
    return _total((b.abs() <= threshold).sum() for b in row_blocks(delta)) / count


def spectral_sparsity(values: torch.Tensor, shape: Sequence[int]) -> float:
    """One minus effective rank (exponential of the entropy of the energies) over numerical rank.

    >>> round(spectral_sparsity(torch.tensor([2.0, 2.0, 0.0]), (3, 3)), 6)
    0.0
    """
    energy = values[: numerical_rank(values, shape)].double() ** 2
    energy = energy / energy.sum()
    return 1 - math.exp(-float((energy * energy.log()).sum())) / len(energy)


# --- outlier damping ----------------------------------------------------------------------------------------------


def damp_entries(delta: torch.Tensor, sigmas: float, strength: float) -> torch.Tensor:
    """``d * (tau / |d|)^strength`` for entries with a magnitude above tau, the others as they are.

    >>> damp_entries(torch.tensor([[1.0, -1.0, 2.0, -9.0]]), 1.5, 1.0)  # tau of (1, 1, 2) is 4/3 + 1.5 * sqrt(2)/3
    tensor([[ 1.0000, -1.0000,  2.0000, -2.0404]])
    """
    threshold = magnitude_threshold(delta, sigmas)
    # Dividing by tau last makes the factor of an ordinary entry exactly one.
    return delta.abs().clamp_(min=threshold).div_(threshold).pow_(-strength).mul_(delta)


def damp_channels(delta: Delta, sigmas: float, strength: float) -> Delta:
    """Rows and columns of outlying norm brought towards their thresholds; keeps the rank."""
    rows, columns = (_damping(norms, sigmas, strength) for norms in _channel_norms(delta))
    if isinstance(delta, LowRank):
        return LowRank(delta.left * rows[:, None], delta.right * columns)
    return (delta * rows[:, None]).mul_(columns)


def _channel_norms(delta: Delta) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(delta, LowRank):
        left, right = delta.left.double(), delta.right.double()
        rows = ((left @ (right @ right.T)) * left).sum(1)
        columns = (((left.T @ left) @ right) * right).sum(0)
        return rows.clamp_(min=0).sqrt_(), columns.clamp_(min=0).sqrt_()
    squares = [(b.sum(1), b.sum(0)) for b in (block.double().square_() for block in row_blocks(delta))]
    return torch.cat([r for r, _ in squares]).sqrt_(), torch.stack([c for _, c in squares]).sum(0).sqrt_()


def _damping(norms: torch.Tensor, sigmas: float, strength: float) -> torch.Tensor:
    threshold = norms.mean() + sigmas * norms.std(correction=0)
    return (norms.clamp(min=threshold) / threshold).pow(-strength).float()
