"""Where results go: into shards, into parts of an adapter, or nowhere (to compare digests)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from triune.checkpoint.index import TensorInfo
from triune.checkpoint.writer import ShardWriter
from triune.engine.job import Job
from triune.methods._lowrank import LowRank
from triune.output.adapter import write_part


class ShardSink:
    """A full model's shards."""

    def __init__(self, writer: ShardWriter) -> None:
        self.writer = writer

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        self.writer.write(info, at, data)

    def write_factors(self, job: Job, delta: LowRank) -> str:
        raise TypeError("a full model has no factors")


class PartSink:
    """One file for each adapted tensor, put together at the end, since ranks are known only then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
