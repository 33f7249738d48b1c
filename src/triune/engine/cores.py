"""What this machine offers."""

from __future__ import annotations

import os
import re

from triune.engine import cgroup
from triune.errors import UserError


def available_cores() -> int:
    """Cores that this process may use, in the container that it runs in."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, cgroup.cores() or allowed)


def pick_device(name: str, choice: str = "cpu, cuda, cuda:N or auto") -> str:
    """``auto`` is the first GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "cpu":
        return name
    if name != "auto" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise UserError(f"--device must be {choice}, got {name}.")
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: there is no such device on this machine. Use cpu or auto.") from None
    return name


def pick_devices(names: str) -> tuple[str, ...]:
    """What lanes may compute on, each device once. ``cuda`` is every GPU, as is ``auto`` where there are any; several may be
    named with commas between them.

    Raises:
        UserError: one of them is not there.
    """
    found: dict[str, None] = {}
    for name in names.split(","):
        device = pick_device(name.strip(), "cpu, cuda, cuda:N, auto, or several with commas")
        found |= dict.fromkeys(_gpus() if device == "cuda" else [device])
    return tuple(found)


def _gpus() -> list[str]:
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
