"""What the engine tells while it works. It never prints: the command line draws these events, a notebook may too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Started:
    """A phase begins."""

    phase: str
    total_bytes: int
    done_bytes: int = 0
    """What an earlier run has finished already."""


@dataclass(frozen=True)
class Advanced:
    """So many bytes more are read and written."""

    nbytes: int
    tensor: str


@dataclass(frozen=True)
class Finished:
    """The phase is over."""

    phase: str


Event = Started | Advanced | Finished
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The default listener."""
