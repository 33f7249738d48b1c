"""Admission: work starts only when the memory it declares is free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Condition

from triune._lazy import torch
from triune.engine import cgroup
from triune.errors import UserError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Budget:
    """A number of bytes that may be in use at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free = limit
        self._changed = Condition()

    @contextmanager
    def reserve(self, nbytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and hold them."""
        nbytes = min(nbytes, self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= nbytes)
            self._free -= nbytes
        try:
            yield
        finally:
            with self._changed:
                self._free += nbytes
                self._changed.notify_all()


def parse_bytes(text: str) -> int:
    """A size as people write it.

    >>> parse_bytes("2GB"), parse_bytes("512 MiB"), parse_bytes("1.5g")
    (2000000000, 536870912, 1500000000)
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?I?)B?\s*", text.upper())
    try:
        assert match is not None
        size = int(float(match[1]) * UNITS[match[2]])
    except (AssertionError, ValueError, KeyError, OverflowError):
        raise UserError(f"{text!r} is not a size. Write a number and a unit, such as 2GB or 512MiB.") from None
    if size <= 0:
        raise UserError(f"A size must be above zero, got {text}. Write a number and a unit, such as 2GB.")
    return size


def default_limit() -> int:
    """Half of the memory that is free now, on the machine and in the container that this process runs in."""
    try:
        with open("/proc/meminfo") as meminfo:
            available = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    left = cgroup.memory_left()
    return max(min(available, available if left is None else left) // 2, 2**28)


def device_limits(devices: Sequence[str], given: int | None, limit: int) -> Mapping[str, int]:
    """Bytes that may be taken of each device: of a GPU what is given, else four fifths of what is free now."""
    return {d: limit if d == "cpu" else given or torch.cuda.mem_get_info(torch.device(d))[0] * 4 // 5 for d in devices}


def fits(devices: Mapping[str, int], need: int) -> bool:
    """Whether a GPU among the devices has room for so many bytes, or the CPU is one of them, whose limit is another."""
    return any(device == "cpu" or need <= nbytes for device, nbytes in devices.items())


def human(nbytes: float) -> str:
    """Bytes for people.

    >>> human(269_000_000), human(1500), human(16.06e9)
    ('269 MB', '1.5 kB', '16.1 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
