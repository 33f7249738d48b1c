"""The seam between what is asked and who answers: a request, a reply, a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]
"""A request as the OpenAI protocol has it, but for the model's name: ``messages``, or ``prompt`` in token ids."""


@dataclass(frozen=True)
class Reply:
    """What a judge said."""

    text: str
    finish: str = "stop"
    """``stop``, or why it is not whole, such as ``length``."""
    top: Mapping[str, float] | None = None
    """Log-probabilities of the likeliest first tokens, where they were asked for and given."""
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""
    """Who answered, by its own account: a served name may mean another model next week."""


@dataclass(frozen=True)
class Problem:
    """Why there is no reply."""

    sentence: str
    lasting: bool
    """The server refuses this very request, so asking again is no use."""


Outcome = Reply | Problem


@dataclass(frozen=True)
class Judge:
    """Somebody who answers requests: a model behind a URL, or one in this process."""

    name: str
    """As the scorer of a result: ``llm:NAME`` or ``guard:NAME``."""
    key: str
    """What decides its replies besides the request, for the cache."""
    where: str
    """For people: where requests go."""
    body: Callable[[Any, Any], Body]
    """From a question of a rubric, and the rubric, to a request."""
    answer: Callable[[Sequence[Body]], Iterator[tuple[int, Outcome]]]
    """Each request's place in the list, and its outcome, in any order."""


@dataclass(frozen=True)
class Usage:
    """Tokens, as the server counts them.

    >>> Usage(2_000_000, 1_000).cost(0.5, 10.0)
    1.01
    """

    tokens_in: int = 0
    tokens_out: int = 0

    def cost(self, price_in: float, price_out: float) -> float:
        """At prices for a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def usage(replies: Iterable[Reply]) -> Usage:
    """Of all replies together."""
    told = list(replies)
    return Usage(sum(r.tokens_in for r in told), sum(r.tokens_out for r in told))
