"""One output tensor: read, compute in float32, cast once, write. Every executor calls :func:`run_job` and nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from triune._lazy import torch
from triune.checkpoint.index import TensorInfo
from triune.checkpoint.reader import Files, Reader, torch_dtype
from triune.checkpoint.remote import AHEAD, is_url
from triune.checkpoint.source import Source
from triune.engine.cache import Kept
from triune.engine.transfer import CudaStreams, Slot, overlapped, pinned_slots
from triune.errors import CheckpointError
from triune.methods import Method, find
from triune.methods._lowrank import LowRank
from triune.methods._spec import Scan, View

if TYPE_CHECKING:
    from triune.engine.cache import Cache

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


class Sink(Protocol):
    """Where a job's result goes."""

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        """Bytes of a dense result, ``at`` bytes from the tensor's start."""

    def write_factors(self, job: Job, delta: LowRank) -> str:
        """A low-rank result; returns the digest of what was stored."""


@dataclass
class Lane:
    """What one worker owns: buffers and a device."""

    files: Files
    device: str = "cpu"
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(self.files)


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
        return job.spec.workspace(job.bound, models, job.output.shape)
    return 0


class Inputs:
    """The tensors of one job, ready to be read block by block."""

    def __init__(self, job: Job, lane: Lane) -> None:
        self.job, self.lane, self.reader = job, lane, lane.reader
        self.columns = job.output.matrix[1]
        self.low_rank = [
            self.reader.low_rank(s.factors) if s.factors and job.route != "copy" else None for s in job.experts
        ]
        self.hashers: dict[int, hashlib._Hash] = {}
        for source in (job.base, *job.experts):
            if source and source.dense and source.rows is None:
                lane.files.advise(source.dense)
        rows = block_rows(job, *job.output.matrix)
        self._stack = torch.empty(len(job.experts), rows, self.columns)
        self._base = torch.empty(rows, self.columns)

    def start_hashing(self) -> None:
        """From now on, hash what is read of each dense input: for the one pass that reads every block once."""
        sources = {-1: self.job.base, **dict(enumerate(self.job.experts))}
        self.hashers = {model: hashlib.sha256() for model, s in sources.items() if s and s.dense}

    def _read(self, source: Source, model: int, first: int, last: int, out: torch.Tensor) -> None:
        assert source.dense is not None
        hasher = self.hashers.get(model)
        if source.rows is None:
            self.reader.rows(source.dense, first, last, out, hasher)
        else:
            self.reader.mapped_rows(source.dense, source.rows[first:last], out, hasher)

    def base(self, first: int, last: int) -> torch.Tensor:
        """Rows of the base, ``[rows, columns]`` float32; zeros where there is no base."""
        out = self._base[: last - first]
        if self.job.base is None:
            return out.zero_()
        if self.job.base.rows is not None:
            out.zero_()  # a token that no model has
        self._read(self.job.base, -1, first, last, out)
        return out

    def block(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The base's rows and the stack that the method takes, deltas or tensors: ``[experts, rows, columns]``."""
        deltas = self.job.spec.takes == "deltas"
        base, stack = self.base(first, last), self._stack[:, : last - first]
        mapped = any(s.rows is not None for s in (self.job.base, *self.job.experts) if s)
        for t, (source, change) in enumerate(zip(self.job.experts, self.low_rank, strict=True)):
            if source.dense is not None:
                self._read(source, t, first, last, stack[t])
            elif deltas and not mapped:
                stack[t].zero_()  # the change alone, not rounded by adding it to the base first
            else:
                stack[t] = base
            if change is not None:
                stack[t] += change.rows(first, last)
            if deltas and not mapped and source.dense is not None:
                stack[t] -= base
        if mapped:
            self._fill_missing(first, last, base, stack)
            if deltas:
                stack -= base
        return base, stack

    def into(self, slot: Slot, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same in a slot's buffers."""
        self._base, self._stack = slot.base, slot.stack
        return self.block(first, last)

    def _fill_missing(self, first: int, last: int, base: torch.Tensor, stack: torch.Tensor) -> None:
        """Rows of tokens that a model does not have: the base gets the mean of those that do, an expert the base's."""

        def missing(source: Source | None) -> torch.Tensor:
            if source is None or source.rows is None:
                return torch.zeros(last - first, dtype=torch.bool)
            return torch.tensor(source.rows[first:last]) < 0

        absent = torch.stack([missing(s if s.dense is not None else self.job.base) for s in self.job.experts])
        # Without a base there is nothing to stay at: a model that lacks the token takes the others' mean.
        lost = missing(self.job.base) if self.job.base else absent.any(0)
        if bool(lost.any()):
            present = (~absent).to(torch.float32).unsqueeze(-1)
            mean = (stack.where(~absent.unsqueeze(-1), 0.0)).sum(0) / present.sum(0).clamp(min=1)
            base[lost] = mean[lost]
        for t in range(len(stack)):
            stack[t][absent[t]] = base[absent[t]]

    def view(self, first: int) -> View:
        return replace(self.job.view, start=first * self.columns)


def run_scan(job: Job, lane: Lane, scan: Scan, turn: int, inputs: Inputs | None = None) -> Scan:
    """Show every block of one tensor to a scan, once, or as much of it as the scan wants to see."""
    inputs, one_of = inputs or Inputs(job, lane), scan.one_of(turn)
    shown = blocks(job) if one_of == 1 else sampled_rows(job, one_of)
    for _, _, see in _steps(job, lane, inputs, shown, lambda stack, first: scan.see(turn, stack, inputs.view(first))):
        see()
    return scan


def _steps(
    job: Job,
    lane: Lane,
    inputs: Inputs,
    ranges: Iterable[tuple[int, int]],
    compute: Callable[[torch.Tensor, int], Any],
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Callable[[], Any]]]:
    """For each range of rows its base, its stack, and what calls ``compute`` on it, or fetches what a GPU made of it."""
    if lane.device == "cpu":
        for first, last in ranges:
            base, stack = inputs.block(first, last)
            yield base, stack, partial(compute, stack, first)
        return
    rows, columns = job.output.matrix
    slots = pinned_slots(len(job.experts), block_rows(job, rows, columns), columns, lane.device)
    for base, stack, result in overlapped(ranges, slots, CudaStreams(lane.device), inputs.into, compute):
        yield base, stack, result.contiguous  # which it is: the result itself


def run_job(
    job: Job, lane: Lane, *, sink: Sink, stats: Any = None, lora: bool = False, cache: Cache | None = None
) -> Done:
    """Make one output tensor.

    Args:
        job: what to make.
        lane: buffers and device.
        sink: where the bytes go.
        stats: the result of a whole-model scan, if the method has one.
        lora: store the merged delta's factors instead of the merged tensor.
        cache: where decompositions are kept and found.

    Raises:
        CheckpointError: an input holds NaN or infinity, or ended early.
    """
    if not job.output.is_float or (job.route == "copy" and job.output.dtype == "F64"):
        return _copy_bytes(job, lane, sink)  # float32 would lose digits of a tensor that nobody changed
    inputs = Inputs(job, lane)
    if job.route == "copy":
        inputs.start_hashing()
        return _write(job, inputs, sink)
    return replace(_compute(job, lane, inputs, sink, stats, lora, cache), device=lane.device)


def _compute(job: Job, lane: Lane, inputs: Inputs, sink: Sink, stats: Any, lora: bool, cache: Cache | None) -> Done:
    own = stats
    if job.route == "blocks" and stats is None:
        own = _scan_tensor(job, lane, inputs)
    inputs.start_hashing()
    if job.route == "dense":
        return _run_dense(job, lane, inputs, sink, cache)
    if job.route == "factors":
        delta = _merge_factors(job, inputs, lane)
        norms = tuple(_product_norm(d) for d in inputs.low_rank)
        if lora:
            size = _product_norm(delta)
            digest = sink.write_factors(job, delta)
            return Done(job.output.name, digest, {}, size, 0.0, norms, size, delta.rank)
        return replace(_write(job, inputs, sink, delta.rows), deltas=norms, rank=delta.rank)
    keywords = {} if own is None else {"stats": own}

    def merge(stack: torch.Tensor, first: int) -> Any:
        return job.spec.function(stack, view=inputs.view(first), **keywords, **job.bound)

    return _merge_blocks(job, inputs, sink, _steps(job, lane, inputs, blocks(job), merge))


def _scan_tensor(job: Job, lane: Lane, inputs: Inputs) -> Any:
    make = job.spec.scan
    scan = make(len(job.experts), job.output.entries, **job.bound) if make else None
    if scan is None:
        return None
    turn = 0
    while turn < scan.passes:
        run_scan(job, lane, scan, turn, inputs)
        scan.close(turn)
        turn += 1
    return scan.result()


def _run_dense(job: Job, lane: Lane, inputs: Inputs, sink: Sink, cache: Cache | None) -> Done:
    rows, columns = job.output.matrix
    spec, device = job.spec, lane.device
    kept = cache.load(job, device) if cache and spec.parts else None
    if kept is None:
        whole = torch.empty(len(job.experts), rows, columns)
        for first, last in blocks(job):
            base, whole[:, first:last] = inputs.block(first, last)
            _check_base(job, base)
        norms = tuple(_norm(d) for d in whole)
        _refuse_nonfinite(job, norms, whole)
        if cache and spec.parts:
            kept = Kept(spec.parts(whole.to(device), view=job.view, **job.bound), _digests(inputs), norms)
            cache.store(job, device, kept)
        else:
            result = spec.function(whole.to(device), view=job.view, **job.bound)
        del whole
    if kept is not None:
        result = kept.parts.merged(job.bound["weight"], job.bound["scaling"]).dense()
    digests, norms = (kept.digests, kept.norms) if kept else (_digests(inputs), norms)
    merged = result.cpu().reshape(rows, columns)
    base_again = Inputs(replace(job, experts=()), lane)
    done = _write(job, base_again, sink, lambda first, last: merged[first:last])
    return replace(done, deltas=norms, inputs=digests)


def _merge_factors(job: Job, inputs: Inputs, lane: Lane) -> LowRank:
    assert job.spec.factors is not None
    for t, delta in enumerate(inputs.low_rank):
        if delta is not None and not (delta.left.isfinite().all() and delta.right.isfinite().all()):
            raise CheckpointError(nonfinite(job, job.view.expert(t)))
    on_device = [d and LowRank(d.left.to(lane.device), d.right.to(lane.device)) for d in inputs.low_rank]
    merged = job.spec.factors(on_device, view=job.view, **job.bound)
    assert isinstance(merged, LowRank)
    return LowRank(merged.left.cpu(), merged.right.cpu())


def _write(job: Job, inputs: Inputs, sink: Sink, delta_rows: Callable[[int, int], torch.Tensor] | None = None) -> Done:
    """Write base plus merged delta, block by block; without ``delta_rows`` the base alone."""
    out = _Output(job, sink)
    for first, last in blocks(job):
        base = inputs.base(first, last)
        delta = delta_rows(first, last) if delta_rows else None
        out.block(base, delta, base if delta is None else base + delta)
    return out.done(inputs)


def _merge_blocks(
    job: Job,
    inputs: Inputs,
    sink: Sink,
    steps: Iterable[tuple[torch.Tensor, torch.Tensor, Callable[[], torch.Tensor]]],
) -> Done:
    """Merge block by block: read the stack, merge it, write the result."""
    out = _Output(job, sink)
    for base, stack, merge in steps:
        if job.spec.takes == "deltas":
            out.inputs(base, stack)
            delta = merge()
            out.block(base, delta, base + delta)
        else:
            merged = merge()
            origin = base if job.base else stack[0].clone()
            out.inputs(origin, stack.sub_(origin))
            out.block(origin, merged - origin, merged)
    return out.done(inputs)


def _copy_bytes(job: Job, lane: Lane, sink: Sink) -> Done:
    """A tensor that is taken from the base as it is."""
    assert job.base is not None
    assert job.base.dense is not None
    info, digest = job.base.dense, hashlib.sha256()
    step = 4 * BLOCK
    for at in range(0, info.nbytes, step):
        data = lane.reader.raw(info, at, min(step, info.nbytes - at))
        digest.update(data)
        sink.write(job.output, at, data)
    return Done(job.output.name, digest.hexdigest(), {-1: digest.hexdigest()}, 0.0, 0.0, (), 0.0)


class _Output:
    """Takes a tensor's blocks in order: casts, writes and hashes them, and adds up squares for the gate.

    The norms of the inputs also tell, at no further cost, whether all their numbers are finite.
    """

    def __init__(self, job: Job, sink: Sink) -> None:
        self.job, self.sink = job, sink
        self.dtype, self.digest, self.at = torch_dtype(job.output.dtype), hashlib.sha256(), 0
        self.merged = self.base = self.merged_delta = 0.0
        self.deltas = [0.0] * len(job.experts)

    def inputs(self, base: torch.Tensor, deltas: torch.Tensor) -> None:
        norms = [_norm(d) for d in deltas]
        _check_base(self.job, base)
        _refuse_nonfinite(self.job, norms, deltas)
        self.deltas = [a + b * b for a, b in zip(self.deltas, norms, strict=True)]

    def block(self, base: torch.Tensor, delta: torch.Tensor | None, result: torch.Tensor) -> None:
        norm = _check_base(self.job, base)
        cast = result.to(self.dtype).contiguous()
        self.base += norm**2
        self.merged += _norm(cast.float()) ** 2 if self.job.output.dtype == "F16" else _norm(result) ** 2
        self.merged_delta += _norm(delta) ** 2 if delta is not None else 0.0
        data = cast.reshape(-1).view(torch.uint8).numpy().data
        self.digest.update(data)
        self.sink.write(self.job.output, self.at, data)
        self.at += len(data)

    def done(self, inputs: Inputs) -> Done:
        merged, base, merged_delta, *deltas = (
            math.sqrt(x) if x == x else math.nan for x in (self.merged, self.base, self.merged_delta, *self.deltas)
        )
        digest = self.digest.hexdigest()
        return Done(self.job.output.name, digest, _digests(inputs), merged, base, tuple(deltas), merged_delta)


def _norm(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _product_norm(delta: LowRank | None) -> float:
    if delta is None or delta.rank == 0:
        return 0.0
    left, right = delta.left.double().T @ delta.left.double(), delta.right.double() @ delta.right.double().T
    return math.sqrt(max(float((left * right).sum()), 0.0))


def _check_base(job: Job, base: torch.Tensor) -> float:
    """The norm of some rows of the base, which must be numbers."""
    norm = _norm(base)
    if not math.isfinite(norm) and not bool(base.isfinite().all()):
        raise CheckpointError(nonfinite(job, "the base" if job.base else job.view.expert(0)))
    return norm


def _refuse_nonfinite(job: Job, norms: Sequence[float], deltas: torch.Tensor) -> None:
    for t, norm in enumerate(norms):
        # A norm overflows float32 above 1e19 while the entries may still be numbers: look at them then.
        if not math.isfinite(norm) and not bool(deltas[t].isfinite().all()):
            raise CheckpointError(nonfinite(job, job.view.expert(t)))


def nonfinite(job: Job, who: str) -> str:
    """The sentence for an input that holds NaN or infinity."""
    return (
        f"{who}: tensor {job.output.name} holds NaN or infinity, which would spread into the merged model. "
        "Check how that model was saved, or leave it out."
    )


def _digests(inputs: Inputs) -> dict[int, str]:
    return {model: h.hexdigest() for model, h in inputs.hashers.items()}
