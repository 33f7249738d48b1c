"""A handful of colours that colour-blind people tell apart (Okabe and Ito, 2008), and that show on white and on black."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

EXPERTS = ("#1f7dbd", "#d55e00", "#009e73", "#cc79a7", "#8c8c1a", "#4a9bd9")
KINDS: Mapping[str, str] = {
    "base": "#7f7f7f",
    "specialist": "#1f7dbd",
    "merge": "#8e5bd0",
    "mixture": "#b7860b",
    "other": "#5f7f7f",
}
APART = ("#542788", "#c8c8c8", "#b35806")
"""Below, at and above a middle that means something: grey, which is neither a light page's white nor a dark one's black."""
HS = ("helpful", "honest", "harmless")


def of_experts(names: Iterable[str]) -> dict[str, str]:
    """Each expert's colour, the same in every figure of a report: those of the three Hs first.

    >>> list(of_experts(["mine", "honest"]).items())
    [('mine', '#cc79a7'), ('honest', '#d55e00')]
    """
    unique = list(dict.fromkeys(names))
    own = dict(zip(HS, EXPERTS, strict=False))
    others = [n for n in unique if n not in own]
    left = EXPERTS[len(HS) :] + EXPERTS[: len(HS)]
    rest = {name: left[i % len(left)] for i, name in enumerate(others)}
    return {n: own.get(n) or rest[n] for n in unique}
