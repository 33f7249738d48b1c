"""Where results go: into shards, into parts of an adapter, or nowhere (to compare digests)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from triune.checkpoint.index import TensorInfo
from triune.checkpoint.writer import ShardWriter
from triune.engine.job import Job
from triune.methods._lowrank import LowRank
from triune.output.adapter import write_part


class Sink(Protocol):
    """Where a job's result goes."""

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        """Bytes of a dense result, ``at`` bytes from the tensor's start."""

    def write_factors(self, job: Job, delta: LowRank) -> str:
        """A low-rank result; returns the digest of what was stored."""


class ShardSink:
    """A full model's shards. Sent to another process, it is a :class:`SharedSink` there."""

    def __init__(self, writer: ShardWriter) -> None:
        self.writer = writer
        for shard in writer.shards.values():
            writer.write(shard.tensors[0], 0, memoryview(b""))  # lays the file out, before any worker opens it

    def __reduce__(self) -> tuple[Any, ...]:
        folder, target = self.writer.folder.absolute(), self.writer.target.absolute()
        places = {n: target / n if (target / n).exists() else folder / n for n in self.writer.shards}
        return SharedSink, (places,)

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        self.writer.write(info, at, data)

    def write_factors(self, job: Job, delta: LowRank) -> str:
        raise TypeError("a full model has no factors")


class SharedSink:
    """Shards that several machines write, each its own tensors, from the first byte to the last.

    A tensor is flushed before it counts as finished: its machine may lose power while the merge goes on without it.
    """

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.places = places
        self._file: BinaryIO

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        if at == 0:
            self._file = self.places[info.file].open("r+b")
            self._file.seek(info.start)
        self._file.write(data)
        if at + len(data) == info.nbytes:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())

    def write_factors(self, job: Job, delta: LowRank) -> str:
        raise TypeError("a full model has no factors")


class PartSink:
    """One file for each adapted tensor, put together at the end, since ranks are known only then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # other machines may start elsewhere

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        raise TypeError("an adapter has no dense tensors")

    def write_factors(self, job: Job, delta: LowRank) -> str:
        return write_part(self.folder, job.index, job.output.name, delta)


class NullSink:
    """Keeps nothing: the job's digest is all that is wanted."""

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        pass

    def write_factors(self, job: Job, delta: LowRank) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return write_part(Path(folder), job.index, job.output.name, delta)
