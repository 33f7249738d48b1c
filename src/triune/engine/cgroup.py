"""What a container or a scheduler leaves to this process (Linux control groups; those of version 1 are not looked at).

The machine's own numbers, in ``/proc/meminfo`` and the list of cores, know nothing of such limits, and a process that goes
beyond its memory is killed without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

DROPPED_AT_NEED = ("inactive_file", "active_file", "slab_reclaimable")
"""Counted as used, and given back by the kernel when the limit is near: files that were read."""
ROOT, SELF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def groups(root: Path = ROOT, self_file: Path = SELF) -> Iterator[Path]:
    """The folder of this process's group and of all that it lies in: each may set a limit."""
    try:
        lines = self_file.read_text().splitlines()
    except OSError:
        return
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is not None:
        group = root / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def memory_left(root: Path = ROOT, self_file: Path = SELF) -> int | None:
    """Bytes until the tightest limit, or None if there is none. What can be dropped does not count as used."""
    left = []
    for group in groups(root, self_file):
        try:
            limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            if limit != "max":
                left.append(int(limit) - used + sum(int(statistics.get(key, 0)) for key in DROPPED_AT_NEED))
        except (OSError, ValueError):
            continue
    return max(min(left), 0) if left else None


def cores(root: Path = ROOT, self_file: Path = SELF) -> int | None:
    """Cores' worth of time, rounded up, or None if there is no limit."""
    shares = []
    for group in groups(root, self_file):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                shares.append(int(quota) / int(period))
        except (OSError, ValueError):
            continue
    return max(math.ceil(min(shares)), 1) if shares else None
