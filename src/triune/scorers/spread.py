"""Scoring on other machines: each loads the model and takes a share of the batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triune.data.pairs import Pair
from triune.engine.executors import Executor, ExecutorFailed
from triune.errors import UserError
from triune.scorers.resume import Rewards

BATCHES = 64
"""Of one share: enough to be worth loading a model."""


@dataclass(frozen=True)
class Share:
    """Batches for one machine."""

    batches: Sequence[list[Pair]]
    nbytes: int = 0
    """Not declared: a model has its machine, or its GPU, for itself."""

    @property
    def traffic(self) -> int:
        return sum(map(len, self.batches))


Work = Callable[[Share, object], Sequence[Sequence[Rewards]]]
"""The rewards of each batch; the second argument is the executor's, and of no use here."""


def spread(
    batches: Sequence[list[Pair]],
    add: Callable[[list[Pair], Sequence[Rewards]], None],
    *,
    executor: Executor,
    work: Work,
) -> None:
    """Let the executor's machines score all batches; ``add`` is called with each and its rewards.

    Raises:
        UserError: the machines cannot, or what is scored is wrong.
    """
    shares = [Share(batches[i : i + BATCHES]) for i in range(0, len(batches), BATCHES)]

    def done(share: Share, rewards: Sequence[Sequence[Rewards]]) -> None:
        for batch, given in zip(share.batches, rewards, strict=True):
            add(batch, given)

    try:
        executor.run(shares, work, done)
    except ExecutorFailed as error:
        raise UserError(f"{error} Then run the same command again: what is finished is kept.") from None
