"""What the entries of deltas look like, gathered block by block in one pass: nothing here grows with a tensor.

Magnitudes are counted in 32,768 bins, the upper half of their float32 bits, each at most 0.8 % wide. Whatever depends on
their order (outliers, tails, shares near zero) is read off these counts; sums and products are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from triune._lazy import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

BINS = 1 << 15
HALF = 16
"""A bin is a float32 magnitude without its lower bits."""
TAIL = 0.01
"""Share of the entries that the Hill estimator takes for the tail."""
SIGMAS = 3.0
HISTOGRAM = (-10, 8, 4)
"""From 2^-10 to 2^8 times the root mean square, in quarters of an octave; what lies beyond counts in the first or last."""


@dataclass
class EntrySums:
    """Moments and counts of one delta's entries."""

    count: int = 0
    zeros: int = 0
    one: float = 0.0
    """Sum of the magnitudes; ``two`` and ``four`` of their powers."""
    two: float = 0.0
    four: float = 0.0
    bins: torch.Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))

    def see(self, block: torch.Tensor) -> None:
        """Take in a block, float32, any shape."""
        magnitudes = block.abs().flatten()
        squares = magnitudes.double().square_()
        self.count += magnitudes.numel()
        self.zeros += magnitudes.numel() - int(magnitudes.count_nonzero())
        self.one += float(magnitudes.sum(dtype=torch.float64))
        self.two += float(squares.sum())
        self.four += float(squares.square_().sum())
        self.bins += torch.bincount(magnitudes.view(torch.int32) >> HALF, minlength=BINS)

    @property
    def norm(self) -> float:
        """Frobenius."""
        return math.sqrt(self.two)

    @property
    def kurtosis(self) -> float:
        """Mean fourth power over the square of the mean square: 3 for a Gaussian, 1 for equal magnitudes."""
        return self.count * self.four / self.two**2 if self.two**2 else 0.0

    @property
    def hoyer(self) -> float:
        """As :func:`triune.methods._outliers.hoyer`: 0 where all magnitudes are equal, 1 for a single entry."""
        root = math.sqrt(self.count)
        return max(0.0, (root - self.one / self.norm) / (root - 1)) if self.two and root > 1 else 0.0

    @property
    def near_zero(self) -> float:
        """Share of entries up to a tenth of the mean magnitude."""
        return float(self.bins[centres() <= 0.1 * self.one / max(self.count, 1)].sum()) / max(self.count, 1)

    def threshold(self) -> float:
        """Mean plus 3 deviations of the magnitudes that are not zero, measured again without what stands above it.

        R-TSVM's definition, to the width of a bin.
        """
        values, counts = centres()[1:], self.bins[1:].double()
        threshold, before = math.inf, -1.0
        for _ in range(10):
            kept = counts * (values <= threshold)
            number = float(kept.sum())
            if number in (0.0, before):
                break
            mean = float((kept * values).sum()) / number
            square = float((kept * values.square()).sum()) / number
            threshold, before = mean + SIGMAS * math.sqrt(max(square - mean**2, 0.0)), number
        # Magnitudes of one bin count as equal; without its width, rounding could make outliers of them all.
        return threshold * (1 + 2.0**-7) if math.isfinite(threshold) else 0.0

    def above(self, threshold: float) -> tuple[float, float]:
        """Share of the entries above a threshold, and of the sum of magnitudes that they hold."""
        values, counts = centres(), self.bins.double()
        behind = counts * (values > threshold)
        total = float((counts * values).sum())
        return float(behind.sum()) / max(self.count, 1), float((behind * values).sum()) / total if total else 0.0

    def hill(self) -> float | None:
        """Tail exponent alpha of ``P(|d| > x) ~ x^-alpha``, by Hill's estimator on the largest 1 %; None for too few."""
        ahead = self.bins.flip(0).cumsum(0)
        wanted = math.ceil(TAIL * (self.count - self.zeros))
        if wanted < 10:
            return None
        last = BINS - 1 - int((ahead >= wanted).nonzero()[0])
        counts, values = self.bins[last:].double(), centres()[last:]
        excess = float((counts * (values / lower_edge(last)).log()).sum())
        return float(counts.sum()) / excess if last and excess > 0 else None

    def histogram(self, threshold: float | None = None) -> list[int]:
        """Number of entries by log2 of magnitude over root mean square, see :data:`HISTOGRAM`; zeros are left out.

        With a threshold, as if every magnitude above it were cut off there, which is what R-TSVM does.
        """
        low, high, parts = HISTOGRAM
        values = centres()[1:]
        if threshold:
            values = values.clamp(max=threshold)
        scale = math.sqrt(self.two / self.count) if self.two else 1.0
        places = ((values / scale).log2() * parts).floor().to(torch.int64) - low * parts
        counts = torch.zeros((high - low) * parts, dtype=torch.int64)
        counts.index_add_(0, places.clamp(0, len(counts) - 1), self.bins[1:])
        return [int(n) for n in counts]


def centres() -> torch.Tensor:
    """The middle of each bin, float64; the first is zero, though numbers below 1e-40 fall into it, too."""
    edges = (torch.arange(BINS, dtype=torch.int32) << HALF).view(torch.float32).double()
    edges[0x7F80:] = torch.finfo(torch.float32).max  # infinities: refused where they are read
    steps = edges.diff(append=edges[-1:]) / 2
    steps[0] = 0
    return edges + steps


def lower_edge(place: int) -> float:
    return float(torch.tensor(place << HALF, dtype=torch.int32).view(torch.float32))


@dataclass
class PairSums:
    """How the entries of two deltas agree."""

    both: float = 0.0
    """Entries that neither leaves at zero."""
    agreement: float = 0.0
    """Those with equal signs, less those with opposite ones."""
    dot: float = 0.0
    joint: float = 0.0
    """Sum of the magnitudes of the sum of both."""

    def see(self, a: torch.Tensor, b: torch.Tensor) -> None:
        signs = a.sign() * b.sign()
        self.both += float(signs.abs().sum())
        self.agreement += float(signs.sum())
        self.dot += float((a.double() * b).sum())
        self.joint += float((a + b).abs().sum(dtype=torch.float64))

    @property
    def conflict(self) -> float:
        """Share of opposite signs among the entries that both change: 0.5 for experts that know nothing of each other."""
        return (self.both - self.agreement) / (2 * self.both) if self.both else 0.0

    def cancelled(self, a: EntrySums, b: EntrySums) -> float:
        """Share of both experts' magnitudes that their sum loses: 0.29 for independent Gaussians, 1 for d and -d."""
        total = a.one + b.one
        return max(0.0, 1 - self.joint / total) if total else 0.0

    def cosine(self, a: EntrySums, b: EntrySums) -> float:
        return self.dot / (a.norm * b.norm) if a.two and b.two else 0.0


@dataclass
class StackSums:
    """All experts and all pairs of one tensor, and the base."""

    experts: list[EntrySums]
    pairs: dict[tuple[int, int], PairSums]
    base_two: float = 0.0

    @classmethod
    def of(cls, experts: int) -> StackSums:
        return cls([EntrySums() for _ in range(experts)], {p: PairSums() for p in combinations(range(experts), 2)})

    def see(self, base: torch.Tensor, deltas: torch.Tensor) -> None:
        """Take in a block: the base's ``[rows, columns]`` and the experts' ``[experts, rows, columns]``, float32."""
        self.base_two += float(torch.linalg.vector_norm(base, dtype=torch.float64)) ** 2
        for sums, delta in zip(self.experts, deltas, strict=True):
            sums.see(delta)
        for (i, j), pair in self.pairs.items():
            pair.see(deltas[i], deltas[j])


def change(merged: torch.Tensor, deltas: torch.Tensor) -> list[tuple[float, float, float]]:
    """What a merged delta makes of each expert's: kept, flipped, dropped.

    kept is ``<merged, d> / <d, d>``: 1 where the whole of d is in the merge, 0 where nothing is, below 0 where it goes the
    other way. flipped and dropped are shares of the entries that d changes: of those with the other sign in the merge,
    and of those that the merge leaves at zero.

    >>> change(torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[[2.0, 1.0, 1.0]]]))
    [(0.5, 0.3333333333333333, 0.3333333333333333)]
    """
    told: list[tuple[float, float, float]] = []
    for delta in deltas:
        changed = max(float(delta.count_nonzero()), 1.0)
        energy = float((delta.double() * delta).sum())
        kept = float((merged.double() * delta).sum()) / energy if energy else 0.0
        flipped = float(((merged.sign() * delta.sign()) < 0).sum()) / changed
        dropped = float(((merged == 0) & (delta != 0)).sum()) / changed
        told.append((kept, flipped, dropped))
    return told


def relative(norms: Sequence[float], base: float) -> list[float | None]:
    """Norms over the base's; None where the base is zero."""
    return [n / base if base else None for n in norms]
