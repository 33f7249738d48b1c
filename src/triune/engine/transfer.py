"""Blocks go to a GPU and their results come back while it computes, and while the host reads and writes.

Two slots take turns. While the GPU computes the block in one, the host writes the result that came back in the other, and
reads the next block into it. Copies are from and to pinned memory, on a stream of their own for each direction. Events order
them:

- the host reads into a buffer when the last copy from it has arrived;
- a block is copied to the GPU when the one that lay there is computed;
- it is computed when it has arrived;
- its result is copied when it is computed, and used, or its memory freed, when it has come back.

This order is tested on streams that do as little, or as much, as it allows; it has not been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal, Protocol

from triune._lazy import torch

Stream = Literal["up", "compute", "down"]


class Streams(Protocol):
    """Three queues of work on a device, each in order, and events between them."""

    def copy(self, stream: Stream, out: torch.Tensor, source: torch.Tensor) -> None:
        """Add a copy to a queue."""

    def launch(self, work: Callable[..., Any], *given: Any) -> Any:
        """Add work to the queue ``compute``; returns what will be its result."""

    def record(self, stream: Stream) -> Any:
        """An event that comes when all that is in the queue now is done."""

    def wait(self, who: Stream | Literal["host"], event: Any) -> None:
        """Let the host, or what a queue gets from now on, wait for an event."""


class CudaStreams:
    """Those of a GPU. What is allocated belongs to the stream ``compute``, which is this thread's own."""

    def __init__(self, device: str) -> None:
        self.streams = {
            "up": torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
            "compute": torch.cuda.current_stream(device),
            "down": torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
        }

    def copy(self, stream: Stream, out: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self.streams[stream]):
            out.copy_(source, non_blocking=True)

    def launch(self, work: Callable[..., Any], *given: Any) -> Any:
        return work(*given)

    def record(self, stream: Stream) -> Any:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # a lane that waits leaves its core to the others
        event.record(self.streams[stream])
        return event

    def wait(self, who: Stream | Literal["host"], event: Any) -> None:
        if who == "host":
            event.synchronize()
        else:
            self.streams[who].wait_event(event)


@dataclass
class Slot:
    """Room for one block on the host and on the device."""

    base: torch.Tensor
    """``[rows, columns]``; it stays on the host."""
    stack: torch.Tensor
    """``[experts, rows, columns]``, pinned."""
    there: torch.Tensor
    """The same on the device."""
    back: torch.Tensor
    """``[rows, columns]``, pinned: the result."""
    sent: Any = None
    computed: Any = None
    returned: Any = None


def pinned_slots(experts: int, rows: int, columns: int, device: str) -> tuple[Slot, Slot]:
    """Two slots, their host memory pinned."""

    def slot() -> Slot:
        return Slot(
            torch.empty(rows, columns),
            torch.empty(experts, rows, columns, pin_memory=True),
            torch.empty(experts, rows, columns, device=device),
            torch.empty(rows, columns, pin_memory=True),
        )

    with torch.cuda.device(device):  # or pinning would wake the first GPU
        return slot(), slot()


def overlapped(
    blocks: Iterable[tuple[int, int]],
    slots: tuple[Slot, Slot],
    streams: Streams,
    read: Callable[[Slot, int, int], tuple[torch.Tensor, torch.Tensor]],
    compute: Callable[[torch.Tensor, int], torch.Tensor | None],
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Compute block after block, one ahead of what is handed out.

    Args:
        blocks: first and last row of each.
        slots: buffers, see :func:`pinned_slots`.
        streams: the device's.
        read: fills a slot's host buffers; returns the base's rows and the stack, parts of these.
        compute: makes the result of a block on the device, or nothing, from its stack there and its first row.

    Yields:
        For each block its base and stack on the host, and the result, valid until the next is asked for.
    """
    for slot in slots:
        slot.sent = slot.computed = slot.returned = streams.record("compute")  # what used this memory before has ended
    ahead: tuple[Slot, torch.Tensor, torch.Tensor, Any] | None = None
    try:
        for (first, last), slot in zip(blocks, cycle(slots), strict=False):
            streams.wait("host", slot.sent)
            base, stack = read(slot, first, last)
            there = slot.there[:, : last - first]
            streams.wait("up", slot.computed)
            for out, source in zip(there, stack, strict=True):  # each of them is contiguous
                streams.copy("up", out, source)
            slot.sent = streams.record("up")
            streams.wait("compute", slot.sent)
            result = streams.launch(compute, there, first)
            slot.computed = streams.record("compute")
            if result is not None:
                streams.wait("down", slot.computed)
                streams.copy("down", slot.back[: last - first], result)
                slot.returned = streams.record("down")
            if ahead:
                yield _arrived(streams, *ahead)
            ahead = slot, base, stack, result
        if ahead:
            yield _arrived(streams, *ahead)
    finally:
        for slot in slots:  # no buffer may go while a copy is on its way
            for event in (slot.sent, slot.computed, slot.returned):
                streams.wait("host", event)


def _arrived(
    streams: Streams, slot: Slot, base: torch.Tensor, stack: torch.Tensor, result: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Wait for a block's result, whose memory on the device the caller holds so long."""
    streams.wait("host", slot.returned)
    return base, stack, slot.back[: len(base)]
