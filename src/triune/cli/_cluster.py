"""The options of commands that can run on a cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

Executor = Annotated[
    str, typer.Option("--executor", help="local, or ray: the nodes of a cluster, which share the folders.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="HOST:PORT of the Ray cluster; RAY_ADDRESS or this machine's if not given."),
]


def executor_of(name: str, address: str | None, out: Path, **how: Any) -> AbstractContextManager[Any]:
    """Who runs the jobs; None for this machine. ``how`` is for :class:`triune.engine.executors.ray.RayExecutor`."""
    check_names(name, address)
    if name == "local":
        return nullcontext()
    from triune.engine.executors.ray import RayExecutor

    return RayExecutor(out, address, **how)


def check_names(executor: str, address: str | None) -> None:
    from triune.errors import UserError

    if executor not in ("local", "ray"):
        raise UserError(f"--executor must be local or ray, got {executor}.")
    if executor == "local" and address:
        raise UserError("--address is of a Ray cluster: add --executor ray, or leave it out.")


def check_merge(executor: str, threads: int | None, device: str) -> None:
    """What a merge on a cluster leaves to the cluster."""
    from triune.errors import UserError

    if executor == "ray" and threads:
        raise UserError("--threads is for one machine. A Ray node has as many as `ray start --num-cpus` gave it.")
    if executor == "ray" and device != "cpu":
        raise UserError(f"--executor ray merges on CPUs, got --device {device}. Leave one of them out.")


def check_device(executor: str, device: str) -> None:
    """Nodes have their own GPUs, which Ray deals out: they cannot be named from here."""
    from triune.errors import UserError

    if executor == "ray" and device not in ("auto", "cpu"):
        raise UserError(f"--executor ray takes --device auto or cpu, got {device}. Ray deals out the nodes' GPUs.")
