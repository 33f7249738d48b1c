"""Decompositions kept between merges that differ in nothing but ``weight`` and ``scaling``.

A folder with one safetensors file for each decomposed tensor, named by a hash of all that could change a number in it, and
whole or absent, so that any number of merges may share the folder. A merge that finds a tensor there reads neither its
experts nor decomposes them; it writes the bytes that it would have written without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triune._lazy import torch
from triune.engine.plan import made_with, stamp
from triune.errors import UserError
from triune.output.atomic import write_bytes

if TYPE_CHECKING:
    from triune.engine.job import Job

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


class Cache:
    """The folder. It is made when the first tensor is kept.

    Raises:
        UserError: it is no folder, or the folder of a model, which would take its files for weights.
    """

    def __init__(self, folder: Path | str, out: Path | str | None = None) -> None:
        self.folder = Path(folder).absolute()  # other machines may start elsewhere
        there = next(place for place in (self.folder, *self.folder.parents) if place.exists())
        if not there.is_dir():
            raise UserError(f"--cache {folder}: {there} is a file. Name a folder; it is made if it does not exist.")
        if (self.folder / "config.json").exists() or (out and self.folder == Path(out).absolute()):
            raise UserError(f"--cache {folder} is the folder of a model. Name a folder of its own.")

    def path(self, job: Job, device: str) -> Path:
        """Where this tensor's decompositions are, or would be."""
        bound = sorted((key, value) for key, value in job.bound.items() if key not in FREE)
        sources = (job.base, *job.experts)
        files = sorted({t.file for s in sources if s for t in s.tensors})
        facts = (made_with(), device.partition(":")[0], job.method, bound, job.view.tensor, sources)
        digest = hashlib.sha256(repr((facts, [stamp(file) for file in files])).encode())
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"

    def there(self, jobs: Iterable[Job], device: str) -> set[str]:
        """Tensors whose decompositions are kept, by name."""
        return {j.output.name for j in decomposed(jobs) if self.path(j, device).exists()}

    def load(self, job: Job, device: str) -> Kept | None:
        """None where it is not kept, or damaged."""
        from safetensors import SafetensorError, safe_open

        from triune.methods._spectral import Orthogonal

        try:
            with safe_open(self.path(job, device), framework="pt") as file:
                told = json.loads(file.metadata()["triune"])
                # Copies: products round by where in memory a matrix begins.
                left, values, right = found = [file.get_tensor(n).clone() for n in ("left", "values", "right")]
                if _digest(found) != told["sha256"]:
                    return None
        except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        parts = Orthogonal(
            left.to(device), values.to(device), right.to(device), tuple(told["ranks"]), tuple(told["shares"])
        )
        return Kept(parts, {int(model): d for model, d in told["digests"].items()}, tuple(told["norms"]))

    def store(self, job: Job, device: str, kept: Kept) -> None:
        from safetensors.torch import save

        parts = kept.parts
        tensors = {n: getattr(parts, n).cpu().contiguous() for n in ("left", "values", "right")}
        told = {
            "ranks": parts.ranks,
            "shares": parts.shares,
            "digests": kept.digests,
            "norms": kept.norms,
            "sha256": _digest(tensors.values()),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache {self.folder} cannot be made: {error.strerror}. Name another folder.") from None
        write_bytes(self.path(job, device), save(tensors, {"triune": json.dumps(told)}))


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    """Of the numbers themselves: safetensors checks a file's header only."""
    digest = hashlib.sha256()
    for tensor in tensors:
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
