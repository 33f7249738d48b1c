"""What the singular values and vectors of deltas say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triune._lazy import torch
from triune.methods._spectral import numerical_rank, truncated_svd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from triune.methods._spectral import Components, Delta, RankRule

KNOTS = 48
"""Points that draw a spectrum."""


@dataclass(frozen=True)
class Spectrum:
    """One delta's singular values, and the leading triplets."""

    values: torch.Tensor
    """All that stand out of rounding, float64, descending."""
    smaller_side: int
    leading: Components
    """The first ``floor(r / T)``, those that TSVM keeps."""

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of ``s / sum(s)`` (Roy and Vetterli, 2007): between 1 and the rank."""
        shares = self.values / self.values.sum()
        return math.exp(-float((shares * shares.log()).sum()))

    @property
    def stable_rank(self) -> float:
        """``sum(s^2) / s_1^2``: between 1 and the rank; hardly moved by small singular values."""
        return float((self.values / self.values[0]).square().sum())

    @property
    def energy_kept(self) -> float:
        """Share of ``sum(s^2)`` in the leading triplets."""
        squares = self.values.square()
        return float(squares[: len(self.leading.values)].sum() / squares.sum())

    def hill(self) -> float | None:
        """Tail exponent of the singular values, by Hill's estimator on the larger half; None below 8 of them."""
        if len(self.values) < 8:
            return None
        half = self.values[: len(self.values) // 2]
        excess = float((half / half[-1]).log().sum())
        return (len(half) - 1) / excess if excess > 0 else None

    def knots(self) -> list[tuple[int, float]]:
        """(Index from 1, s / s_1) at up to 48 places, dense at the front."""
        n = len(self.values)
        places = sorted({round(math.exp(math.log(n) * i / (KNOTS - 1))) for i in range(KNOTS)})
        return [(p, float(self.values[p - 1] / self.values[0])) for p in places]


def spectrum(delta: Delta, rank_rule: RankRule) -> Spectrum | None:
    """Decompose a delta; None if it is zero."""
    seen: list[torch.Tensor] = []

    def rank_of(values: torch.Tensor) -> int:
        seen.append(values[: numerical_rank(values, delta.shape)].clone())
        return rank_rule(values)

    leading = truncated_svd(delta, rank_of)
    return Spectrum(seen[0], min(delta.shape), leading) if leading else None


def overlap(a: Components, b: Components) -> tuple[float, float]:
    """How far two experts' leading left, and right, singular spaces coincide: mean squared cosine of the principal angles.

    1 for the same space, 0 for orthogonal ones; about k / m for random spaces of k out of m dimensions.
    """

    def share(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x.T @ y).square().sum()) / min(x.shape[1], y.shape[1])

    return share(a.left, b.left), share(a.right, b.right)


def task_interference(parts: Sequence[Components]) -> float:
    """Singular task interference: ``|(U'U - I) S (V'V - I)|_1 / sum(S)``, with all experts' leading vectors side by side.

    Gargiulo et al., arXiv 2412.00081, section 3; theirs is not divided by the sum. 0 where no expert's directions meet
    another's.

    >>> from triune.methods._spectral import Components
    >>> one, two = (Components(e, torch.tensor([2.0]), e) for e in torch.eye(2).unsqueeze(-1))
    >>> task_interference([one, two]), task_interference([one, one])
    (0.0, 1.0)
    """
    if not parts:
        return 0.0
    left = torch.cat([p.left for p in parts], dim=1)
    right = torch.cat([p.right for p in parts], dim=1)
    values = torch.cat([p.values for p in parts]).float()
    one = (left.T @ left).fill_diagonal_(0)
    two = (right.T @ right).fill_diagonal_(0)
    return float(((one * values) @ two).abs().sum() / values.sum())
