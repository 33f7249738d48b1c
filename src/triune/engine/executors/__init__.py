"""Who runs the jobs. Each executor calls the same function on the same jobs, so all of them give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from triune.engine.job import Job, Lane
from triune.errors import TriuneError

R = TypeVar("R")


class ExecutorFailed(TriuneError, RuntimeError):
    """The machines cannot run the jobs, though nothing is wrong with these; what is finished stays finished."""


class Executor(Protocol):
    """Runs independent jobs."""

    limit: int
    """Bytes that the largest job may take."""

    def run(
        self,
        jobs: Sequence[Job],
        work: Callable[[Job, Lane], R],
        done: Callable[[Job, R], None] = lambda job, result: None,
    ) -> None:
        """Call ``work`` on every job, in any order and any number at once, within the memory limit.

        ``done`` is called with each result, one at a time, in the thread that called ``run``. The first error stops the
        rest and is raised; so is :class:`triune.errors.Interrupted` after Ctrl-C, when all running jobs are finished.
        """
