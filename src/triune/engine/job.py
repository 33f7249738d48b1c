"""What it takes to make one output tensor: inputs, route, blocks, memory. Making it is :mod:`triune.engine.run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from triune.checkpoint.index import TensorInfo
from triune.checkpoint.remote import AHEAD, is_url
from triune.checkpoint.source import Source
from triune.methods import Method, find
from triune.methods._spec import View
from triune.methods._spectral import TOGETHER

Route = Literal["copy", "blocks", "dense", "factors"]

BLOCK = 1 << 18
"""Entries of a block: a megabyte in float32, so that a stack of experts stays in the cache while it is worked on. It is a
constant because sums over blocks round by it: the same bytes come out under any memory limit."""

BLOCK_COPIES = 8
"""Float32 temporaries of one block, for each expert, that the hungriest method holds at once (measured, see the tests)."""

STATISTICS = 12 * 2**20
"""Bytes for each expert that a scan holds: what a search for magnitude thresholds has gathered, with temporaries (see
:mod:`triune.methods._sampled_cuts`), or a random mask that is remembered (:data:`triune.methods._scan.REMEMBERED`)."""


@dataclass(frozen=True)
class Job:
    """Everything that is needed to make one output tensor, on any thread or machine."""

    index: int
    output: TensorInfo
    """Name, dtype and shape of the result, and its place in the output shard."""
    route: Route
    """copy: no expert changes it. blocks: any method whose grain allows it. dense: the whole stack at once. factors: on the
    adapters' factors alone."""
    method: str
    bound: Mapping[str, Any]
    view: View
    base: Source | None
    experts: tuple[Source, ...]
    nbytes: int = 0
    """Peak memory it takes."""

    @property
    def traffic(self) -> int:
        """Bytes read once and written, which is what the progress bar counts."""
        return self.read_bytes + self.output.nbytes

    @property
    def read_bytes(self) -> int:
        """Bytes of all inputs, adapters' factors included."""
        sources = [s for s in (self.base, *self.experts) if s]
        return sum(t.nbytes for s in sources for t in s.tensors)

    @cached_property
    def spec(self) -> Method:
        return find(self.method)


@dataclass(frozen=True)
class Done:
    """What a finished job leaves behind for the journal, the lock file and the gate."""

    tensor: str
    digest: str
    """SHA-256 of the output's bytes (of the part file, for a LoRA output)."""
    inputs: Mapping[int, str]
    """SHA-256 of what was read of each dense input, by model: -1 is the base."""
    merged: float
    base: float
    deltas: tuple[float, ...]
    merged_delta: float
    """Frobenius norms."""
    rank: int | None = None
    """Rank of the merged delta where it was found as a product of factors."""
    device: str = "cpu"
    """What computed it."""
    cached: bool = False
    """Whether its decompositions were found in a cache."""


def block_rows(job: Job, rows: int, columns: int) -> int:
    return max(1, min(rows, BLOCK // max(columns, 1)))


def blocks(job: Job) -> Iterator[tuple[int, int]]:
    """Row ranges of the tensor's matrix view, always the same ones."""
    rows, columns = job.output.matrix
    step = block_rows(job, rows, columns)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def sampled_rows(job: Job, one_of: int) -> Iterator[tuple[int, int]]:
    """Ranges of one row or of some 4,096 entries, spread evenly: together one entry in ``one_of``, and at least one row."""
    rows, columns = job.output.matrix
    few = max(1, 4096 // max(columns, 1))
    for first in range(0, rows, few * one_of):
        yield first, min(first + few, rows)


def memory_of(job: Job) -> int:
    """Peak bytes that :func:`run_job` takes for this job. An estimate from above, held to by a test."""
    far = sum(s.dense is not None and is_url(s.dense.file) for s in (job.base, *job.experts) if s)
    return _memory_of(job) + far * AHEAD


def _memory_of(job: Job) -> int:
    rows, columns = job.output.matrix
    block = block_rows(job, rows, columns) * columns * 4
    models = len(job.experts)
    pairs = [(s.factors.a, s.factors.b) for s in job.experts if s.factors]
    # All factors are held in float32; while one is read there are its bytes, a scaled and a transposed copy besides.
    factors = sum(4 * (a.entries + b.entries) for a, b in pairs)
    factors += max((16 * max(a.entries, b.entries) for a, b in pairs), default=0)
    if job.route == "copy":
        return 4 * block
    if job.route == "blocks":
        return block * (models * BLOCK_COPIES + 6) + models * STATISTICS + factors
    if job.route == "factors":
        return 6 * factors + 6 * block
    assert job.spec.workspace is not None
    return job.spec.workspace(job.bound, models, job.output.shape) + (models + 6) * block + factors


def device_memory_of(job: Job) -> int:
    """Bytes of a GPU that the job takes there. An estimate from above; not measured on one."""
    rows, columns = job.output.matrix
    block, models = block_rows(job, rows, columns) * columns * 4, len(job.experts)
    if job.route == "blocks":
        return block * (models * (BLOCK_COPIES + 1) + 1) + models * STATISTICS  # one stack more is on its way
    if job.route == "factors":
        return 6 * sum(4 * (s.factors.a.entries + s.factors.b.entries) for s in job.experts if s.factors)
    if job.route == "dense":
        assert job.spec.workspace is not None
        need = job.spec.workspace(job.bound, models, job.output.shape)
        if min(job.output.matrix) > TOGETHER:
            return need
        return max(need, models * job.spec.workspace(job.bound, 1, job.output.shape))
    return 0
