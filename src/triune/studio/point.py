"""A point between the experts: whose share is how large, by which method, and how strong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triune.checkpoint.lora import is_adapter
from triune.errors import ParameterError
from triune.methods import Method

FINE = 10_000
"""A share of the simplex is a whole number of these: recipes with numbers that people can read."""


@dataclass(frozen=True)
class Point:
    """Where the user stands, and by which method."""

    method: str
    shares: tuple[float, ...]
    """Of each expert; they add up to 1."""
    strength: float = 1.0
    """What the shares are multiplied by; 1 where the method divides by the sum of the weights anyway."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> tuple[float, ...]:
        """A third of 3 is 1: where the sum need not be exact, the rounding of the shares is rounded away."""
        digits = 6 if self.strength == 1 else 3
        return tuple(round(s * self.strength, digits) for s in self.shares)


def simplex(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares that add up to 1, rounded to a hundredth of a percent.

    >>> simplex([1, 1, 1])
    (0.3334, 0.3333, 0.3333)
    """
    if not all(isinstance(s, int | float) and not isinstance(s, bool) and 0 <= s < math.inf for s in shares):
        raise ParameterError(f"A share must be a number of at least 0, got {list(shares)}.")
    total = math.fsum(shares)
    if total <= 0:
        raise ParameterError("The shares add up to 0: give at least one expert a share.")
    exact = [s / total * FINE for s in shares]
    counts = [math.floor(e) for e in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: FINE - sum(counts)]:
        counts[i] += 1
    return tuple(c / FINE for c in counts)


def strength_of(method: Method, parameters: Mapping[str, Any], experts: int) -> float | None:
    """The strength to begin with: the centre is then what ``triune merge`` makes without weights.

    None where there is nothing to choose: the method has no weights, wants a sum of 1, or divides by the sum.
    """
    weight = next((p for p in method.parameters if p.name == "weight"), None)
    if weight is None or (weight.interval and weight.interval.text == "[0, 1]"):
        return None
    normalize = next((p for p in method.parameters if p.name == "normalize"), None)
    if normalize and parameters.get("normalize", normalize.default) is True:
        return None
    return float(experts) if method.takes == "deltas" else 1.0


def quick(base: str | None, experts: Sequence[str] | None) -> str:
    """A method that is quick to move with: TSVM for adapters, whose factors it merges, and an average for full models."""
    named = [e for e in experts or () if "+" not in e and not e.rpartition("=")[2].startswith("demo:")]
    folders = [Path(e.partition("=")[2] or e).expanduser() for e in named]
    return "tsvm" if base and all(is_adapter(f) for f in folders) else "linear"


class RefusedParameter(ParameterError):
    """A value that one field of the page's form holds."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name = name
