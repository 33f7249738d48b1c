"""What a judge decided, from what it wrote. Pure and strict: what is not clearly a verdict is None, and nobody guesses."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from triune.evals.judges.reply import Reply

BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")

MOST = 0.5
"""How much probability the two answers of :func:`preferred` must have together: with less the judge says something else."""


def verdict(reply: Reply, words: Collection[str]) -> str | None:
    """The word in the last double brackets, whatever its case, if it is one of these and the reply was not cut off.

    >>> verdict(Reply("First I thought [[no]], but: [[Yes]]"), ("yes", "no"))
    'yes'
    >>> verdict(Reply("[[yes]], or rather [[perhaps]]"), ("yes", "no"))
    """
    if reply.finish not in ("stop", ""):
        return None  # what is last now might not have been the last
    found = BRACKETS.findall(reply.text)
    word = found[-1].strip().lower() if found else ""
    return word if word in words else None


def rating(reply: Reply) -> float | None:
    """A rating of 1 to 10 in the last double brackets, as a tenth of itself.

    >>> rating(Reply("Clear and correct. Rating: [[7]]")), rating(Reply("[[11]]"))
    (0.7, None)
    """
    word = verdict(reply, _RATINGS)
    return float(word) / 10 if word else None


_RATINGS = frozenset(f"{tenth / 10:g}" for tenth in range(10, 101)) | {f"{n}.0" for n in range(1, 11)}


def preferred(reply: Reply) -> float | None:
    """How probable it is that the judge prefers the first answer, by the log-probabilities of ``m`` (first) and ``M``.

    AlpacaEval's rule: p(m) / (p(m) + p(M)), an answer that is not among the likeliest tokens counting as impossible. Ours:
    both together must have :data:`MOST` of the probability.

    >>> round(preferred(Reply("m", top={"m": math.log(0.6), "M": math.log(0.2)})), 6)  # 0.6 / (0.6 + 0.2)
    0.75
    """
    p = dict.fromkeys("mM", 0.0)
    for token, logprob in (reply.top or {}).items():
        if token.strip() in p:
            p[token.strip()] += math.exp(logprob)
    both = p["m"] + p["M"]
    return p["m"] / both if both >= MOST else None


def both_orders(first: str | None, second: str | None) -> float | None:
    """Whether A won, from the verdicts ``a``, ``b`` or ``c`` (equal) with A shown first, and with A shown second.

    Only who wins in both orders wins; all else is a tie, as in MT-Bench.

    >>> both_orders("a", "b"), both_orders("b", "a"), both_orders("a", "a"), both_orders("a", "c")
    (1.0, 0.0, 0.5, 0.5)
    >>> both_orders("a", None)
    """
    if first is None or second is None:
        return None
    return {("a", "b"): 1.0, ("b", "a"): 0.0}.get((first, second), 0.5)
