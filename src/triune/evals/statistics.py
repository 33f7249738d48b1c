"""From scores of single rows to numbers that may be compared: intervals, means of means, tests on the same rows.

All scores lie in [0, 1]. Nothing here reads a file or a clock, and equal input gives equal output.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from triune.evals.benchmark import Benchmark

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z = NormalDist().inv_cdf(0.975)
"""Of a 95% interval, 1.96."""

RESAMPLES = 10_000
"""The smallest p-value is one in so many: enough for Holm's correction over a whole table."""


@dataclass(frozen=True)
class Estimate:
    """A score with its 95% interval."""

    value: float
    low: float
    high: float
    stderr: float | None
    """None where one row alone says nothing of it."""
    n: int
    """Rows; of a mean, of all its benchmarks together."""
    missing: tuple[str, ...] = ()
    """Benchmarks that a mean should have counted and could not."""


# --- one model on one benchmark ---------------------------------------------------------------------------------


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share of n independent cases (Wilson 1927).

    >>> [round(x, 3) for x in wilson(0.5, 10)]
    [0.237, 0.763]
    """
    shrink = 1 + Z * Z / n
    middle = (share + Z * Z / (2 * n)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def standard_error(scores: Sequence[float]) -> float | None:
    """Sample standard deviation over the root of n, as lm-evaluation-harness prints it.

    >>> standard_error([1.0, 0.0, 1.0, 0.0])  # sqrt(4 * 0.25 / 3) / sqrt(4)
    0.28867513459481287
    """
    n = len(scores)
    mean = math.fsum(scores) / n
    return math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / (n - 1) / n) if n > 1 else None


def bootstrap(scores: Sequence[float], tag: str, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95% percentile interval of the mean (Efron 1979), widened to hold the mean itself where few rows leave it out.

    Args:
        tag: the seed, as text.
    """
    import numpy as np

    mean = math.fsum(scores) / len(scores)
    low, high = np.quantile(_resampled_means(scores, tag, resamples), [0.025, 0.975])
    return min(mean, float(low)), max(mean, float(high))


def estimate(scores: Sequence[float], tag: str) -> Estimate:
    """The mean of the rows' scores: with Wilson's interval if each is right or wrong, else by bootstrap.

    Scores that are all equal get Wilson's, too: resampling them would promise certainty, and no scores in [0, 1] vary more
    than right and wrong ones of the same mean.

    >>> found = estimate([1.0] * 5 + [0.0] * 5, "0:gsm8k")
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (0.5, 0.237, 0.763)
    """
    n = len(scores)
    mean = math.fsum(scores) / n
    low, high = wilson(mean, n) if _right_or_wrong(scores) or len({*scores}) == 1 else bootstrap(scores, tag)
    return Estimate(mean, low, high, standard_error(scores), n)


def oriented(found: Estimate, higher_is_better: bool) -> Estimate:
    """The estimate counted so that higher is better: x, or 1 - x. The only place where a direction is turned.

    >>> oriented(Estimate(0.25, 0.125, 0.5, 0.1, 20), higher_is_better=False)
    Estimate(value=0.75, low=0.5, high=0.875, stderr=0.1, n=20, missing=())
    """
    if higher_is_better:
        return found
    return Estimate(1 - found.value, 1 - found.high, 1 - found.low, found.stderr, found.n, found.missing)


def normalised(value: float, chance: float, best: float) -> float | None:
    """Where a score lies between guessing (0) and the best specialist (1), of numbers that count higher as better.

    It is not clipped: below 0 a model does worse than guessing and above 1 better than every specialist, and hiding
    either would make a mean too kind or too harsh. It is wild where the best specialist hardly beats guessing, and None
    where it does not.

    >>> normalised(0.5, chance=0.25, best=0.75)  # (0.5 - 0.25) / (0.75 - 0.25)
    0.5
    """
    return (value - chance) / (best - chance) if best > chance else None


# --- means of means ---------------------------------------------------------------------------------------------


def weights(benchmarks: Iterable[Benchmark]) -> dict[str, float]:
    """How much each counts: every H as much, in it every dimension, in that every benchmark.

    So one function gives the mean of a dimension, of an H and of all three, whichever benchmarks it is given.
    """
    tree: dict[str, dict[str, list[str]]] = {}
    for b in benchmarks:
        tree.setdefault(b.h, {}).setdefault(b.dimension, []).append(b.name)
    return {
        name: 1 / (len(tree) * len(dimensions) * len(names))
        for dimensions in tree.values()
        for names in dimensions.values()
        for name in names
    }


def mean(scores: Mapping[str, Estimate], benchmarks: Sequence[Benchmark]) -> Estimate | None:
    """The mean over these benchmarks, by :func:`weights`, of scores that count higher as better.

    The interval is that of a sum of independent estimates (MOVER, Zou and Donner 2008): the distances of the parts'
    limits from their values, weighted, squared and added. It stays in [0, 1], and the mean of one is that one.

    Returns:
        The mean over those benchmarks that have a score, which names those that have not. None where one of the Hs has
        none at all: two Hs are no substitute for three.
    """
    present = [b for b in benchmarks if b.name in scores]
    if {b.h for b in present} != {b.h for b in benchmarks} or not present:
        return None
    parts = [(w, scores[name]) for name, w in weights(present).items()]

    def spread(distances: Iterable[float]) -> float:
        return math.hypot(*(w * d for (w, _), d in zip(parts, distances, strict=True)))

    value = math.fsum(w * e.value for w, e in parts)
    errors = [e.stderr for _, e in parts if e.stderr is not None]
    return Estimate(
        value,
        value - spread(e.value - e.low for _, e in parts),
        value + spread(e.high - e.value for _, e in parts),
        spread(errors) if len(errors) == len(parts) else None,
        sum(e.n for _, e in parts),
        tuple(b.name for b in benchmarks if b.name not in scores),
    )


def ranks(values: Mapping[str, float | None]) -> dict[str, int | None]:
    """1 for the highest; equal values share a rank and the next is left out; None keeps None.

    >>> ranks({"a": 0.5, "b": 0.75, "c": 0.5, "d": None, "e": 0.25})
    {'a': 2, 'b': 1, 'c': 2, 'd': None, 'e': 4}
    """
    known = [round(v, 12) for v in values.values() if v is not None]
    return {m: None if v is None else 1 + sum(k > round(v, 12) for k in known) for m, v in values.items()}


def retention(model: Estimate | None, specialist: Estimate | None) -> float | None:
    """How much of a specialist's score on its own dimension a model keeps: their ratio.

    None where it would compare different benchmarks, or divide by zero.

    >>> retention(Estimate(0.375, 0.3, 0.5, None, 100), Estimate(0.75, 0.7, 0.8, None, 100))  # 0.375 / 0.75
    0.5
    """
    if model is None or specialist is None or model.missing != specialist.missing or specialist.value == 0:
        return None
    return model.value / specialist.value


# --- two models on the same rows --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """One model's scores minus another's on the rows of a benchmark that both have, counted so that higher is better."""

    differences: tuple[float, ...]
    right_or_wrong: bool
    """Whether every score is 0 or 1."""
    tag: str

    @property
    def difference(self) -> float:
        return math.fsum(self.differences) / len(self.differences)

    @cached_property
    def by_chance(self) -> NDArray[Any]:
        """Mean differences that resampling gives if the models are equal: the differences, centred."""
        centre = self.difference
        return _resampled_means([d - centre for d in self.differences], self.tag, RESAMPLES)


def paired(first: Mapping[str, float], second: Mapping[str, float], higher_is_better: bool, tag: str) -> Paired | None:
    """Pair the scores of two models by the ids of their rows; None where they share no row."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    sign = 1 if higher_is_better else -1
    differences = tuple(sign * (first[i] - second[i]) for i in shared)
    exact = _right_or_wrong([scores[i] for scores in (first, second) for i in shared])
    return Paired(differences, exact, tag)


@dataclass(frozen=True)
class Comparison:
    """How much better one model is than another, with a 95% bootstrap interval."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    """Rows that both models have."""
    test: str
    """``mcnemar`` or ``bootstrap``."""


def compare(parts: Sequence[tuple[float, Paired]]) -> Comparison:
    """Compare two models on a benchmark, or on a weighted mean of several.

    One benchmark of right and wrong answers: McNemar's exact test. All else: the paired bootstrap test (Efron and
    Tibshirani 1993, chapter 16), the benchmarks resampled each for itself: how often centred differences come out as
    large as those found, the found ones counted among them so that p is never 0.

    Args:
        parts: (weight, paired scores) of each benchmark.
    """
    import numpy as np

    difference = math.fsum(w * pair.difference for w, pair in parts)
    by_chance = sum(w * pair.by_chance for w, pair in parts)
    low, high = difference + np.quantile(by_chance, [0.025, 0.975])
    exact = len(parts) == 1 and parts[0][1].right_or_wrong
    if exact:
        differences = parts[0][1].differences
        p = mcnemar(sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    else:
        as_large = int(np.sum(np.abs(by_chance) >= abs(difference) - 1e-12))
        p = (1 + as_large) / (1 + RESAMPLES)
    n = sum(len(pair.differences) for _, pair in parts)
    interval = min(difference, float(low)), max(difference, float(high))
    return Comparison(difference, *interval, p, n, "mcnemar" if exact else "bootstrap")


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p of McNemar's test (1947): rows that only one model has right, split as by a fair coin.

    >>> mcnemar(1, 9)  # 2 * (C(10, 0) + C(10, 1)) / 2^10 = 22 / 1024
    0.021484375
    """
    n, term, tail = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (n - k) // (k + 1)  # C(n, k + 1), in whole numbers
    return min(1.0, 2 * tail / (1 << n))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979): below 0.05, the chance of any false find stays below 0.05.

    >>> holm([0.01, 0.04, 0.03])  # 3 * 0.01, then 2 * 0.03, then 1 * 0.04 raised to the one before
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(ps)
    highest = 0.0
    for position, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - position) * ps[i]))
        corrected[i] = highest
    return corrected


def _right_or_wrong(scores: Iterable[float]) -> bool:
    return all(s in (0.0, 1.0) for s in scores)


def _resampled_means(scores: Sequence[float], tag: str, resamples: int) -> NDArray[Any]:
    """Means of resamples with replacement: drawn as counts of each different score, so their order does not matter."""
    import numpy as np

    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(tag.encode()).digest()))
    values, counts = np.unique(np.asarray(scores, dtype=float), return_counts=True)
    n, share = len(scores), counts / counts.sum()
    block = max(1, 4_000_000 // len(values))  # 32 MB of counts at once
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([generator.multinomial(n, share, size=size) @ values / n for size in sizes])
