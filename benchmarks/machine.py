"""The machine that the numbers are from, in words."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path

from triune.engine.budget import human
from triune.engine.cores import available_cores


def describe(folder: Path) -> dict[str, str]:
    """CPU, memory, the disk under the folder, and versions."""
    disk = shutil.disk_usage(folder)
    return {
        "CPU": f"{_cpu()}, {available_cores()} cores",
        "RAM": human(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "disk": f"{_file_system(folder)}, {human(disk.free)} free of {human(disk.total)}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in ("triune", "torch", "numpy")),
    }


def load() -> float:
    """Mean number of processes that wanted a core in the last minute: what we do not run ourselves, others did."""
    return os.getloadavg()[0]


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found[1] if found else platform.processor() or platform.machine()
    flags = Path("/proc/cpuinfo").read_text().split() if found else []
    extras = [f for f in ("avx2", "avx512f", "amx_tile") if f in flags]
    return f"{name} ({', '.join(extras)})" if extras else name


def _file_system(folder: Path) -> str:
    """Type of the file system that holds the folder."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "disk"
    holding = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1]
