"""Blocks on their way to a GPU and back, on streams that are as lazy or as hasty as the events between them allow.

A lazy stream does nothing until the host waits for it, and then no more than it must; a hasty one does all it can at once.
So a missing wait shows as a wrong result, and each wait is taken away once to see that it does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from triune.engine import job, merge, run
from triune.engine.executors.local import LocalExecutor
from triune.engine.inputs import Lane
from triune.engine.job import Job
from triune.engine.transfer import Slot, overlapped

if TYPE_CHECKING:
    from conftest import Case, Models, Run

ORDERS = (("up", "compute", "down"), ("down", "compute", "up"), ())
"""Streams that run as soon as they may, the first of them first; the others when they are waited for."""


@dataclass
class Later:
    """A result that is not there before its work is done."""

    value: Any = None


@dataclass
class FakeStreams:
    hasty: tuple[str, ...] = ()
    ignored: str = ""
    """Whose waits do nothing."""
    queues: dict[str, list[Any]] = field(default_factory=lambda: {"up": [], "compute": [], "down": []})
    done: dict[str, int] = field(default_factory=lambda: {"up": 0, "compute": 0, "down": 0})

    def _add(self, stream: str, work: Any) -> None:
        self.queues[stream].append(work)
        for hasty in self.hasty * 3:
            while self.done[hasty] < len(self.queues[hasty]) and self._ready(self.queues[hasty][self.done[hasty]]):
                self._step(hasty)

    def _ready(self, work: Any) -> bool:
        return callable(work) or self.done[work[0]] >= work[1]

    def _step(self, stream: str) -> None:
        work = self.queues[stream][self.done[stream]]
        if callable(work):
            work()
        else:
            self._reach(*work)
        self.done[stream] += 1

    def _reach(self, stream: str, count: int) -> None:
        while self.done[stream] < count:
            self._step(stream)

    def copy(self, stream: str, out: torch.Tensor, source: Any) -> None:
        def work() -> None:
            found = source.value if isinstance(source, Later) else source
            if found is not None:  # of a scan, or not there yet
                out.copy_(found)

        self._add(stream, work)

    def launch(self, work: Callable[..., Any], *given: Any) -> Later:
        later = Later()
        self._add("compute", lambda: setattr(later, "value", work(*given)))
        return later

    def record(self, stream: str) -> tuple[str, int]:
        return stream, len(self.queues[stream])

    def wait(self, who: str, event: tuple[str, int]) -> None:
        if who == self.ignored:
            return
        if who == "host":
            self._reach(*event)
        else:
            self._add(who, event)


class Silent(FakeStreams):
    """Work without results, such as a scan's."""

    def launch(self, work: Callable[..., Any], *given: Any) -> Any:
        super().launch(work, *given)


def slots(experts: int, rows: int, columns: int, device: str = "") -> tuple[Slot, Slot]:
    """Filled with what no block holds."""

    def slot() -> Slot:
        one, many = torch.full((rows, columns), -1.0), torch.full((experts, rows, columns), -1.0)
        return Slot(one, many, many.clone(), one.clone())

    return slot(), slot()


BLOCKS = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]


def sums(streams: FakeStreams) -> list[float]:
    """Block i holds i + 1 in both experts, so each entry of its result is twice that."""

    def read(slot: Slot, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        base, stack = slot.base[: last - first], slot.stack[:, : last - first]
        stack.fill_(first // 2 + 1)
        return base, stack

    seen = []
    for base, _, back in overlapped(BLOCKS, slots(2, 2, 3), streams, read, lambda stack, first: stack.sum(0)):
        assert base.shape == back.shape
        seen.append(float(back.mean()))
    return seen


def scanned(streams: FakeStreams) -> list[float]:
    seen: list[float] = []

    def read(slot: Slot, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        slot.stack.fill_(first // 2 + 1)
        return slot.base[: last - first], slot.stack[:, : last - first]

    for _ in overlapped(BLOCKS, slots(2, 2, 3), streams, read, lambda stack, first: seen.append(float(stack.mean()))):
        pass
    return seen


@pytest.mark.parametrize("hasty", ORDERS)
def test_every_block_comes_back_in_order(hasty: tuple[str, ...]) -> None:
    assert sums(FakeStreams(hasty)) == [2, 4, 6, 8, 10]
    assert scanned(Silent(hasty)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("who", ["host", "up", "compute", "down"])
def test_each_wait_is_needed(who: str) -> None:
    found = [sums(FakeStreams(hasty, who)) == [2, 4, 6, 8, 10] for hasty in ORDERS]
    found += [scanned(Silent(hasty, who)) == [1, 2, 3, 4, 5] for hasty in (*ORDERS, ("up",))]
    assert not all(found)


def test_the_next_block_is_read_before_the_last_result_is_waited_for() -> None:
    told: list[str] = []

    class Telling(FakeStreams):
        def launch(self, work: Callable[..., Any], *given: Any) -> Later:
            told.append(f"launch {given[1]}")
            return super().launch(work, *given)

    def read(slot: Slot, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        told.append(f"read {first}")
        return slot.base[: last - first], slot.stack[:, : last - first]

    for i, _ in enumerate(overlapped(BLOCKS[:3], slots(2, 2, 3), Telling(), read, lambda stack, first: stack.sum(0))):
        told.append(f"write {2 * i}")
    assert told == [
        *("read 0", "launch 0", "read 2", "launch 2", "write 0", "read 4", "launch 4", "write 2", "write 4"),
    ]


def test_nothing_is_on_its_way_when_it_fails() -> None:
    streams = FakeStreams()

    def read(slot: Slot, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        if first == 4:
            raise OSError("the disk is gone")
        return slot.base, slot.stack

    with pytest.raises(OSError, match="gone"):
        list(overlapped(BLOCKS, slots(2, 2, 3), streams, read, lambda stack, first: stack.sum(0)))
    assert streams.done == {name: len(queue) for name, queue in streams.queues.items()}


class OnStreams(LocalExecutor):
    """Does on a GPU, as the job sees it, what works in blocks."""

    def run(
        self,
        jobs: Sequence[Any],
        work: Callable[[Any, Lane], Any],
        done: Callable[[Any, Any], None] = lambda j, r: None,
    ) -> None:
        def there(job: Job, lane: Lane) -> Any:
            return work(job, Lane(lane.files, "cuda:0") if job.route == "blocks" else lane)

        super().run(jobs, there, done)


def test_a_merge_gives_the_same_bytes(
    case: Case, models: Models, flags_of: Any, triune: Run, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of a few rows, so that a tensor is many of them."""
    monkeypatch.setattr(job, "BLOCK", 300)
    command = ("merge", *models.flags, *flags_of(case), "--quiet", "--no-gate")
    assert triune(*command, tmp_path / "plain").code == 0
    plain = load(tmp_path / "plain")
    monkeypatch.setattr(merge, "LocalExecutor", OnStreams)
    monkeypatch.setattr(run, "pinned_slots", slots)
    for number, hasty in enumerate(ORDERS[::2]):
        monkeypatch.setattr(run, "CudaStreams", lambda device, hasty=hasty: FakeStreams(hasty))
        assert triune(*command, tmp_path / str(number)).code == 0
        lock = json.loads((tmp_path / str(number) / "triune.lock.json").read_text())
        assert lock["device"] == "cuda"
        found = load(tmp_path / str(number))
        assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
