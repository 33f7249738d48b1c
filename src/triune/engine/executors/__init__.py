"""Who runs the jobs. Each executor calls the same function on the same jobs, so all of them give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from triune.engine.inputs import Lane
from triune.errors import TriuneError

R = TypeVar("R")


class Work(Protocol):
    """A job: all that is needed to do it, picklable, so that any thread or machine can."""

    @property
    def nbytes(self) -> int:
        """Peak memory it takes."""

    @property
    def traffic(self) -> int:
        """How long it takes, in a unit of its own; of a merge the bytes read and written."""


J = TypeVar("J", bound=Work)


class ExecutorFailed(TriuneError, RuntimeError):
    """The machines cannot run the jobs, though nothing is wrong with these; what is finished stays finished."""


class Executor(Protocol):
    """Runs independent jobs."""

    limit: int
    """Bytes that the largest job may take."""

    def run(
        self,
        jobs: Sequence[J],
        work: Callable[[J, Lane], R],
        done: Callable[[J, R], None] = lambda job, result: None,
    ) -> None:
        """Call ``work`` on every job, in any order and any number at once, within the memory limit.

        ``done`` is called with each result, one at a time, in the thread that called ``run``. The first error stops the
        rest and is raised; so is :class:`triune.errors.Interrupted` after Ctrl-C, when all running jobs are finished.
        """
