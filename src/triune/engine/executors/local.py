"""Threads on this machine: one lane each, reading, computing and writing on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

from triune._lazy import torch
from triune.checkpoint.reader import Files
from triune.engine.allocator import keep_freed_blocks
from triune.engine.budget import Budget
from triune.engine.executors import Work
from triune.engine.job import Lane
from triune.errors import Interrupted

J = TypeVar("J", bound=Work)
R = TypeVar("R")


class LocalExecutor:
    """Lanes that take jobs in order; while one waits for the disk, the others compute.

    Within a lane torch uses a single thread, so the number of lanes never changes a sum's order, nor a byte of the result.
    Lanes take the devices in turn. What does not fit into a GPU's memory is done on the CPU instead.
    """

    def __init__(self, threads: int, limit: int, *devices: str) -> None:
        self.devices = devices or ("cpu",)
        self.threads, self.limit = max(threads, len(self.devices)), limit
        self.budget = Budget(limit)

    def run(
        self,
        jobs: Sequence[J],
        work: Callable[[J, Lane], R],
        done: Callable[[J, R], None] = lambda job, result: None,
    ) -> None:
        """See :class:`triune.engine.executors.Executor`."""
        queue, turn, stop = iter(jobs), Lock(), Event()
        results: SimpleQueue[tuple[J, R] | BaseException | None] = SimpleQueue()

        def lane_main(files: Files, device: str) -> None:
            torch.set_num_threads(1)
            lane = Lane(files, device)
            try:
                while not stop.is_set():
                    # Only the holder of the turn waits for memory, so a large job is never overtaken for ever.
                    with turn:
                        job = next(queue, None)
                        if job is None:
                            return
                        reservation = self.budget.reserve(job.nbytes)
                        reservation.__enter__()
                    try:
                        results.put((job, _work(work, job, lane)))
                    finally:
                        reservation.__exit__(None, None, None)
            except BaseException as error:
                results.put(error)
            finally:
                results.put(None)

        keep_freed_blocks()
        threads_before = torch.get_num_threads()
        failure: BaseException | None = None
        with Files() as files:
            lanes = [
                Thread(target=lane_main, args=(files, self.devices[i % len(self.devices)]), daemon=True)
                for i in range(self.threads)
            ]
            for lane in lanes:
                lane.start()
            running = len(lanes)
            while running:
                try:
                    result = results.get()
                    if result is None:
                        running -= 1
                    elif isinstance(result, BaseException):
                        failure = failure or result
                        stop.set()
                    else:
                        done(*result)
                except KeyboardInterrupt:
                    failure = failure or Interrupted("Stopped. Run the same command again to continue.")
                    stop.set()
                except (
                    Exception
                ) as error:  # of the listener or the journal: the lanes must end before their files close
                    failure = failure or error
                    stop.set()
            for lane in lanes:
                lane.join()
        torch.set_num_threads(threads_before)
        if failure is not None:
            raise failure


def _work(work: Callable[[J, Lane], R], job: J, lane: Lane) -> R:
    try:
        return work(job, lane)
    except torch.OutOfMemoryError:
        if lane.device == "cpu":
            raise
    # After the handler, whose traceback holds the device's tensors. Every job writes from its first byte again.
    torch.cuda.empty_cache()
    return work(job, Lane(lane.files, "cpu"))
