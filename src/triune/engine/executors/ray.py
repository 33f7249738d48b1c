"""Ray tasks on a cluster whose nodes share a file system with this machine.

In a merge a task is a lane for a few hundred megabytes of jobs: it reads the models, computes, writes its tensors into the
shared shards and sends back what the journal keeps. Jobs that load whole models have a task each, and a node or a GPU for
themselves. Ray places tasks by cores, GPUs and declared memory, and starts those of a dead node elsewhere.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from triune._lazy import torch
from triune.checkpoint.reader import Files
from triune.engine.allocator import keep_freed_blocks
from triune.engine.executors import ExecutorFailed, Work
from triune.engine.inputs import Lane
from triune.engine.plan import made_with
from triune.errors import Interrupted, TriuneError, UserError

J = TypeVar("J", bound=Work)
R = TypeVar("R")

GROUP = 1 << 28
"""Bytes read and written that make a task worth sending."""

WORKER = 1 << 29
"""Bytes of memory that a worker takes before its first job: Python and torch (0.3 GB), and scratch."""

STEP = 1 << 28
"""Declared memory is rounded up to this, since Ray queues every different demand apart."""

RETRIES = 20
"""Dead workers that a task may see. Work that kills its workers must end some day."""

ANSWER = 10.0
"""Seconds that the head of a cluster has to answer; Ray itself tries for minutes."""


class RayExecutor(AbstractContextManager["RayExecutor"]):
    """Runs jobs on a Ray cluster. Leaving the context disconnects.

    Args:
        out: the output folder, which every node must see under this path.
        address: HOST:PORT of the cluster's head; by default what RAY_ADDRESS says, else the cluster of this machine.
        limit: bytes of working memory on a node; by default what the node offers to Ray.
        alone: jobs load whole models: each has the cores of a node, or one of its GPUs, instead of a core.
        device: with ``alone``: auto takes the GPUs if there are any; cpu does not.

    Raises:
        UserError: Ray is not installed, or no cluster answers, or its nodes have no cores or no memory to offer.
    """

    def __init__(
        self,
        out: Path,
        address: str | None = None,
        limit: int | None = None,
        *,
        alone: bool = False,
        device: str = "auto",
    ) -> None:
        self._connected = _connect(address)
        import ray

        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
        self.offered = max((int(n.get("memory", 0)) for n in nodes), default=0)
        if self.offered <= WORKER:
            self.__exit__()
            raise UserError(
                f"The Ray cluster has no node with a core and more than {WORKER >> 20} MiB of memory to offer. "
                "Add one with `ray start --address HOST:PORT`."
            )
        self.lanes = sum(int(n["CPU"]) for n in nodes)
        self.limit = min(limit or self.offered, self.offered - WORKER)
        self.alone, self.cores, self.gpus = alone, 1, 0
        if alone:
            having = [n for n in nodes if device != "cpu" and n.get("GPU", 0) >= 1]
            self.gpus = 1 if having else 0
            self.cores = max(1, min(int(n["CPU"] // (n["GPU"] if having else 1)) for n in having or nodes))
        token = out.absolute() / ".triune" / f"run-{secrets.token_hex(8)}"
        self.place = Place(Path.cwd(), token, made_with(), self.cores)

    def __exit__(self, *_: object) -> None:
        if self._connected:
            import ray

            ray.shutdown()

    def run(
        self,
        jobs: Sequence[J],
        work: Callable[[J, Lane], R],
        done: Callable[[J, R], None] = lambda job, result: None,
    ) -> None:
        """See :class:`triune.engine.executors.Executor`. After Ctrl-C running jobs are killed instead of waited for."""
        import ray

        self.place.mark()
        task, sent = ray.remote(_run_group), ray.put(work)
        pending: dict[Any, Sequence[J]] = {}
        size = 0 if self.alone else min(GROUP, sum(j.traffic for j in jobs) // (4 * self.lanes))
        # The largest first, so that none is left to a single lane in the end.
        for group in sorted(groups(jobs, size), key=lambda g: -sum(j.traffic for j in g)):
            demand = {
                "num_cpus": self.cores,
                "num_gpus": self.gpus,
                "memory": self.demand(max(j.nbytes for j in group)),
            }
            started = task.options(scheduling_strategy="SPREAD", max_retries=RETRIES, **demand)
            pending[started.remote(group, sent, self.place)] = group
        try:
            while pending:
                (ready, *_), _ = ray.wait(list(pending))
                for job, result in zip(pending.pop(ready), _get(ready), strict=True):
                    done(job, result)
        except KeyboardInterrupt:
            raise Interrupted("Stopped. Run the same command again to continue.") from None
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            self.place.clear()

    @property
    def device(self) -> str:
        """What a job computes on."""
        return "cuda" if self.gpus else "cpu"

    def demand(self, nbytes: int) -> int:
        """Memory to ask Ray for, so that jobs of ``limit`` bytes together fill a node."""
        asked = WORKER + nbytes * (self.offered - WORKER) // self.limit
        return min(-(-asked // STEP) * STEP, self.offered)


@dataclass(frozen=True)
class Place:
    """Where and with what jobs run; a node that differs would write other bytes, or write them elsewhere."""

    start: Path
    """Relative paths start here."""
    token: Path
    """An empty file in the output's working folder, with a name of this run alone: who sees it shares the folder."""
    software: str
    threads: int = 1
    """Of a job, wherever it runs: the order of a sum must not depend on the node's cores."""

    def mark(self) -> None:
        """Put the token there. Without theirs, tasks that a killed run has left behind do not start."""
        self.token.parent.mkdir(parents=True, exist_ok=True)
        for old in self.token.parent.glob("run-*"):
            old.unlink()
        self.token.touch()

    def clear(self) -> None:
        """Take the token away, and its folder if there is nothing else in it."""
        with suppress(OSError):
            self.token.unlink()
            self.token.parent.rmdir()

    def check(self) -> None:
        """Refuse this node if it differs."""
        self.token.stat()
        if self.software != made_with():
            raise ExecutorFailed(
                f"Node {_node()} has {made_with()}, the machine that started the run {self.software}. "
                "Install the same on all."
            )


def groups(jobs: Sequence[J], size: int) -> Iterator[list[J]]:
    """Cut jobs, in order, into groups of at most so much traffic; a larger job gets its own."""
    group: list[J] = []
    for job in jobs:
        if group and sum(j.traffic for j in group) + job.traffic > size:
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def _run_group(jobs: Sequence[J], work: Callable[[J, Lane], R], place: Place) -> list[R]:
    """What a node does."""
    try:
        place.check()
        keep_freed_blocks()
        torch.set_num_threads(place.threads)
        with suppress(FileNotFoundError):  # no matter, unless a relative path starts there
            os.chdir(place.start)
        with Files() as files:
            lane = Lane(files)
            return [work(job, lane) for job in jobs]
    except FileNotFoundError as error:
        raise ExecutorFailed(
            f"Node {_node()} sees no {error.filename}. Put the models and the output folder on a file system that all nodes "
            "share, under one path."
        ) from None
    except OSError as error:
        raise ExecutorFailed(f"Reading or writing failed on node {_node()}: {error}. Remove the cause.") from None


def _node() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _get(reference: Any) -> Any:
    """A task's results, or the error that it met, as if it had run here."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TriuneError):
            raise error.cause from None
        if lacking := re.search(r"No module named '([\w.]+)'", str(error)):
            raise ExecutorFailed(
                f"A node cannot import {lacking[1]}. Install the same triune in the Python of every node."
            ) from None
        raise
    except ray.exceptions.OutOfDiskError:
        raise ExecutorFailed(
            "A node of the Ray cluster has no room for results: its object store is full, and so is its disk, or over 95%. "
            "Make room there."
        ) from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ExecutorFailed(
            f"Ray lost a task {RETRIES} times: {reason}. Look at the nodes' memory and logs."
        ) from None


def _connect(address: str | None) -> bool:
    """Connect this process to a cluster, unless it is; says whether it did."""
    if find_spec("ray") is None:
        raise UserError('--executor ray needs ray, which is not installed. Run: pip install "triune[cluster]"')
    import ray

    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        except (OSError, ValueError, OverflowError):
            raise UserError(
                f"--address {address}: no Ray cluster answers there. Write HOST:PORT as `ray start --head` printed it."
            ) from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"No Ray cluster can be used from here: {reason}. Start one with `ray start --head`, or run this command on "
            "one of its nodes."
        ) from None
    return True
