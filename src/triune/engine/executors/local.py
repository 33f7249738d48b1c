"""Threads on this machine: one lane each, reading, computing and writing on its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from heapq import nlargest
from itertools import cycle, islice
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, TypeVar

from triune._lazy import torch
from triune.checkpoint.reader import Files
from triune.engine.allocator import keep_freed_blocks
from triune.engine.budget import Budget, fits
from triune.engine.executors import Work
from triune.engine.inputs import Lane
from triune.errors import Interrupted

J = TypeVar("J", bound=Work)
R = TypeVar("R")


class LocalExecutor:
    """Lanes that take jobs one by one; while one waits for the disk, the others compute.

    Within a lane torch uses a single thread, so the number of lanes never changes a sum's order, nor a byte of the result.
    Lanes take the devices in turn. What no device has room for is done on the CPU, by a lane more and by those that have
    nothing left to do; so is what a GPU refuses all the same.

    Args:
        threads: lanes, at least one for each device.
        limit: bytes of this machine's memory.
        devices: what lanes compute on, and how many bytes of each they may take; the CPU alone if not given.
        need: bytes of a GPU that a job takes.
    """

    def __init__(
        self,
        threads: int,
        limit: int,
        devices: Mapping[str, int] | None = None,
        need: Callable[[Any], int] = lambda job: job.nbytes,
    ) -> None:
        self.devices, self.need = devices or {"cpu": limit}, need
        self.threads, self.limit = max(threads, len(self.devices)), limit
        self.budget = Budget(limit)
        self.room = {device: Budget(nbytes) for device, nbytes in self.devices.items() if device != "cpu"}

    def run(
        self,
        jobs: Sequence[J],
        work: Callable[[J, Lane], R],
        done: Callable[[J, R], None] = lambda job, result: None,
    ) -> None:
        """See :class:`triune.engine.executors.Executor`."""
        names = list(islice(cycle(self.devices), self.threads))
        if not all(fits(self.devices, self.need(job)) for job in jobs):
            names.append("cpu")
        waiting, access, turn, stop = self.longest_first(jobs, Counter(names)), Lock(), Lock(), Event()
        turns = {device: Lock() for device in (*names, "cpu")}
        results: SimpleQueue[tuple[J, R] | BaseException | None] = SimpleQueue()

        def take(device: str) -> J | None:
            with access:
                found = next((i for i, job in enumerate(waiting) if self._may(device, job)), None)
                return None if found is None else waiting.pop(found)

        def lane_main(files: Files, device: str) -> None:
            torch.set_num_threads(1)
            lanes = [Lane(files, name) for name in dict.fromkeys((device, "cpu"))]
            try:
                while lanes and not stop.is_set():
                    lane = lanes[0]
                    with ExitStack() as held:
                        # Only the holder of a turn waits for memory, so a large job is never overtaken for ever.
                        with turns[lane.device]:
                            job = take(lane.device)
                            if job is None:
                                lanes.pop(0)
                                continue
                            if lane.device in self.room:
                                held.enter_context(self.room[lane.device].reserve(self.need(job)))
                            with turn:
                                held.enter_context(self.budget.reserve(job.nbytes))
                        results.put((job, _work(work, job, lane)))
            except BaseException as error:
                results.put(error)
            finally:
                results.put(None)

        keep_freed_blocks()
        threads_before = torch.get_num_threads()
        failure: BaseException | None = None
        with Files() as files:
            lanes = [Thread(target=lane_main, args=(files, name), daemon=True) for name in names]
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
                except Exception as error:
                    # Of the listener or the journal: the lanes must end before their files close.
                    failure = failure or error
                    stop.set()
            for lane in lanes:
                lane.join()
        torch.set_num_threads(threads_before)
        if failure is not None:
            raise failure

    def longest_first(self, jobs: Sequence[J], lanes: Mapping[str, int]) -> list[J]:
        """In which order to take them, so that the last one does not keep a lane busy for long while others have none.

        As they come for one lane, and where memory has no room for the largest on all lanes at once: these would mostly
        wait for each other, with nothing small between them.
        """
        all_lanes = sum(lanes.values())
        tight = _sum_of_largest(all_lanes, (j.nbytes for j in jobs)) > self.limit or any(
            _sum_of_largest(lanes[device], (need for j in jobs if (need := self.need(j)) <= room)) > room
            for device, room in self.devices.items()
            if device != "cpu"
        )
        return list(jobs) if tight or all_lanes == 1 else sorted(jobs, key=lambda j: -j.traffic)

    def _may(self, device: str, job: Any) -> bool:
        if device in self.room:
            return self.need(job) <= self.devices[device]
        return "cpu" in self.devices or not fits(self.devices, self.need(job))


def _sum_of_largest(count: int, sizes: Iterable[int]) -> int:
    return sum(nlargest(count, sizes))


def _work(work: Callable[[J, Lane], R], job: J, lane: Lane) -> R:
    try:
        return work(job, lane)
    except RuntimeError as error:  # the libraries' own workspaces fail as such, not as torch.OutOfMemoryError
        refusals = (torch.OutOfMemoryError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
        if lane.device == "cpu" or not (isinstance(error, refusals) or "ALLOC_FAILED" in str(error)):
            raise
    # After the handler, whose traceback holds the device's tensors. Every job writes from its first byte again.
    torch.cuda.empty_cache()
    return work(job, Lane(lane.files, "cpu"))
