"""Decompositions kept between merges that differ in nothing but ``weight`` and ``scaling``.

A folder with one safetensors file for each decomposed tensor, named by a hash of all that could change a number in it, and
whole or absent, so that any number of merges may share the folder. A merge that finds a tensor there reads neither its
experts nor decomposes them; it writes the bytes that it would have written without.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from triune._lazy import torch
from triune.checkpoint.remote import is_url
from triune.engine.journal import in_the_way
from triune.engine.plan import made_with, stamp
from triune.errors import UserError
from triune.output.atomic import write_bytes

if TYPE_CHECKING:
    from triune.engine.job import Job

R = TypeVar("R")

OWN = re.compile(r"[0-9a-f]{32}\.safetensors")
"""Names of a cache's files."""
FREE = ("weight", "scaling")
"""Parameters on which the decompositions do not depend."""


@dataclass(frozen=True)
class Kept:
    """A tensor's decompositions, and what else of its experts a merge would have to read again."""

    parts: Any
    """:class:`triune.methods._spectral.Orthogonal`."""
    digests: Mapping[int, str]
    norms: tuple[float, ...]
    """As in :class:`triune.engine.job.Done`."""

    @staticmethod
    def read(path: Path, device: str) -> Kept | None:
        """None where there is none, or it is damaged."""
        from triune.methods._spectral import Orthogonal

        def found(file: Any, told: dict[str, Any]) -> Kept | None:
            # Copies: products round by where in memory a matrix begins.
            left, values, right = tensors = [file.get_tensor(n).clone() for n in ("left", "values", "right")]
            digest, _, text = file.metadata()["triune"].partition(" ")
            if _digest(text, tensors) != digest:
                return None
            parts = Orthogonal(
                left.to(device), values.to(device), right.to(device), tuple(told["ranks"]), tuple(told["shares"])
            )
            return Kept(parts, {int(model): d for model, d in told["digests"].items()}, tuple(told["norms"]))

        return _read(path, "pt", found)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        from safetensors.torch import save

        parts = self.parts
        tensors = {n: getattr(parts, n).cpu().contiguous() for n in ("left", "values", "right")}
        told = {
            "key": path.stem,
            "ranks": parts.ranks,
            "shares": parts.shares,
            "digests": self.digests,
            "norms": self.norms,
        }
        text = json.dumps(told)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save(tensors, {"triune": f"{_digest(text, tensors.values())} {text}"}))


def own_folder(folder: Path | str, out: Path | str | None) -> Path:
    """Where a cache may be.

    Raises:
        UserError: it is no folder, holds anything else that is not hidden, or lies in ``out``, or ``out`` in it: who loads a
            model's folder would take the files for weights, and nobody could tell which to throw away.
    """
    if not str(folder):
        raise UserError("--cache names nothing. Name a folder; it is made if it does not exist.")
    if str(folder).startswith("demo:") or is_url(str(folder)):
        raise UserError(f"--cache {folder} is the name of a model. Name a folder of this machine.")
    found = Path(folder).absolute()  # other machines may start elsewhere
    if obstacle := in_the_way(found):
        raise UserError(f"--cache {folder}: {obstacle}. Name a folder; it is made if it does not exist.")
    if out:
        ours, theirs = Path(os.path.realpath(found)), Path(os.path.realpath(out))
        if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
            raise UserError(f"--cache {folder} is, holds or lies in the output {out}. Name a folder beside it.")
    if (found / "config.json").exists():
        raise UserError(f"--cache {folder} is the folder of a model. Name a folder of its own.")
    held = found.iterdir() if found.exists() else ()
    others = (p.name for p in held if p.name[0] != "." and (p.is_dir() or not OWN.fullmatch(p.name)))
    if other := min(others, default=None):
        raise UserError(f"--cache {folder} holds other things, such as {other}. Name a folder of its own.")
    return found


class Cache:
    """A folder, for merges of these weight files as they are now. It is made when the first tensor is kept.

    A file that changes later has no part in what is kept: what it was may still be read, what it is has another name.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.folder = folder
        self.stamps = {file: _stamp(file) for file in files}

    def path(self, job: Job, device: str) -> Path:
        """Where this tensor's decompositions are, or would be."""
        bound = sorted((key, value) for key, value in job.bound.items() if key not in FREE)
        sources = (job.base, *job.experts)
        files = sorted({t.file for s in sources if s for t in s.tensors})
        facts = (made_with(), device.partition(":")[0], job.method, bound, job.view.tensor, sources)
        digest = hashlib.sha256(repr((facts, [self.stamps[file] for file in files])).encode())
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"

    def there(self, jobs: Iterable[Job], device: str) -> set[str]:
        """Tensors whose decompositions are kept, by name, as far as the files' headers and lengths tell."""
        paths = {j.output.name: self.path(j, device) for j in decomposed(jobs)}
        return {name for name, path in paths.items() if _read(path, "np", lambda file, told: True)}  # without torch


def _read(path: Path, framework: str, found: Callable[[Any, dict[str, Any]], R]) -> R | None:
    """What ``found`` makes of a file and its facts; None where there is no such file, or another under its name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            told = json.loads(file.metadata()["triune"].partition(" ")[2])
            return found(file, told) if told["key"] == path.stem else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _stamp(file: str) -> object:
    """What tells whether a weight file has changed, and more than :func:`triune.engine.plan.stamp`.

    That also its inode did, of which nobody sets the time, as archives set the other. It changes with a file's name, rights
    and links, too: here that costs another decomposition, and an unfinished merge would be lost by it.
    """
    there = not is_url(file) and Path(file).exists()
    return stamp(file), Path(file).stat().st_ctime_ns if there else None


def _digest(text: str, tensors: Iterable[torch.Tensor]) -> str:
    """Of all that a file says: safetensors checks lengths only."""
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def decomposed(jobs: Iterable[Job]) -> list[Job]:
    """Those that a cache keeps something of."""
    return [j for j in jobs if j.route == "dense" and j.spec.parts is not None]


def idle(folder: Path | str, jobs: Iterable[Job], method: str) -> str | None:
    """What to say where a cache is named and nothing will be kept in it; None where something is."""
    jobs = list(jobs)
    if decomposed(jobs):
        return None
    factors = any(j.route == "factors" and j.spec.parts is not None for j in jobs)
    why = "decomposes no more than the adapters' factors" if factors else "decomposes nothing"
    return f"--cache {folder}: {method} {why}, so nothing is kept there."


def most_bytes(job: Job) -> int:
    """Of the job's file, at most: two matrices ``[m, K]`` and ``[n, K]`` in float32, K at most the smaller side.

    For a square matrix that is twice its own bytes in float32.
    """
    m, n = job.output.matrix
    k = min(m, n) // len(job.experts) * len(job.experts)
    return 4 * (m + n) * k + 8 * k + 4096
