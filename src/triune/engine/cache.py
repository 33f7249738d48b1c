"""Decompositions kept between merges that differ in nothing but ``weight`` and ``scaling``.

A folder with one safetensors file for each decomposed tensor, named by a hash of all that could change a number in it, and
whole or absent, so that any number of merges may share the folder. A merge that finds a tensor there reads neither its
experts nor decomposes them; it writes the bytes that it would have written without.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from triune._lazy import torch
from triune.checkpoint.remote import is_url
from triune.engine.plan import made_with, stamp
from triune.errors import UserError
from triune.output.atomic import write_bytes

if TYPE_CHECKING:
    from triune.engine.job import Job

R = TypeVar("R")

OWN = re.compile(r"[0-9a-f]{32}\.safetensors|\..*")
"""Names of a cache's files, of those that are being written, and of what systems hide in any folder."""
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
        UserError: it is no folder, or holds anything else: who loads a model's folder would take the files for weights, and
            nobody could tell which to throw away.
    """

    def __init__(self, folder: Path | str, out: Path | str | None = None) -> None:
        if str(folder).startswith("demo:") or is_url(str(folder)):
            raise UserError(f"--cache {folder} is the name of a model. Name a folder of this machine.")
        self.folder = Path(folder).absolute()  # other machines may start elsewhere
        there = next(place for place in (self.folder, *self.folder.parents) if place.exists())
        if not there.is_dir():
            raise UserError(f"--cache {folder}: {there} is a file. Name a folder; it is made if it does not exist.")
        if (self.folder / "config.json").exists() or (
            out and Path(out).absolute() in (self.folder, *self.folder.parents)
        ):
            raise UserError(f"--cache {folder} is the folder of a model. Name a folder of its own.")
        held = self.folder.iterdir() if self.folder.exists() else ()
        if other := min((p.name for p in held if not OWN.fullmatch(p.name) or p.is_dir()), default=None):
            raise UserError(f"--cache {folder} holds other things, such as {other}. Name a folder of its own.")

    def path(self, job: Job, device: str) -> Path:
        """Where this tensor's decompositions are, or would be."""
        bound = sorted((key, value) for key, value in job.bound.items() if key not in FREE)
        sources = (job.base, *job.experts)
        files = sorted({t.file for s in sources if s for t in s.tensors})
        facts = (made_with(), device.partition(":")[0], job.method, bound, job.view.tensor, sources)
        digest = hashlib.sha256(repr((facts, [_stamp(file) for file in files])).encode())
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"

    def there(self, jobs: Iterable[Job], device: str) -> set[str]:
        """Tensors whose decompositions are kept, by name, as far as the files' headers and lengths tell."""
        return {j.output.name for j in decomposed(jobs) if _read(self.path(j, device), lambda file, told: True)}

    def load(self, job: Job, device: str) -> Kept | None:
        """None where it is not kept, or damaged."""
        from triune.methods._spectral import Orthogonal

        def read(file: Any, told: dict[str, Any]) -> Kept | None:
            # Copies: products round by where in memory a matrix begins.
            left, values, right = found = [file.get_tensor(n).clone() for n in ("left", "values", "right")]
            digest, _, text = file.metadata()["triune"].partition(" ")
            if _digest(text, found) != digest:
                return None
            parts = Orthogonal(
                left.to(device), values.to(device), right.to(device), tuple(told["ranks"]), tuple(told["shares"])
            )
            return Kept(parts, {int(model): d for model, d in told["digests"].items()}, tuple(told["norms"]))

        return _read(self.path(job, device), read)

    def store(self, job: Job, device: str, kept: Kept) -> None:
        from safetensors.torch import save

        parts = kept.parts
        tensors = {n: getattr(parts, n).cpu().contiguous() for n in ("left", "values", "right")}
        path = self.path(job, device)
        told = {
            "key": path.stem,
            "ranks": parts.ranks,
            "shares": parts.shares,
            "digests": kept.digests,
            "norms": kept.norms,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache {self.folder} cannot be made: {error.strerror}. Name another folder.") from None
        text = json.dumps(told)
        write_bytes(path, save(tensors, {"triune": f"{_digest(text, tensors.values())} {text}"}))


def _read(path: Path, read: Callable[[Any, dict[str, Any]], R]) -> R | None:
    """What ``read`` makes of a file and its facts; None where there is no such file, or another under its name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["triune"].partition(" ")[2])
            return read(file, told) if told["key"] == path.stem else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _stamp(file: str) -> object:
    """What tells whether a weight file has changed: also its inode's time, which nobody sets, as archives do the other."""
    there = not is_url(file) and Path(file).exists()
    return stamp(file), Path(file).stat().st_ctime_ns if there else None


def _digest(text: str, tensors: Iterable[torch.Tensor]) -> str:
    """Of all that a file says: safetensors checks lengths only."""
    digest = hashlib.sha256(text.encode())
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
