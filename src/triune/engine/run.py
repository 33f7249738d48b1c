"""One output tensor: read, compute in float32, cast once, write. Every executor calls :func:`run_job` and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from triune._lazy import torch
from triune.engine.cache import Cache, Kept
from triune.engine.inputs import Inputs, Lane
from triune.engine.job import BLOCK, Done, Job, block_rows, blocks, sampled_rows
from triune.engine.result import Result, check_base, frobenius, nonfinite, product_norm, refuse_nonfinite
from triune.engine.sinks import Sink
from triune.engine.transfer import CudaStreams, overlapped, pinned_slots
from triune.errors import CheckpointError
from triune.methods._lowrank import LowRank
from triune.methods._spec import Scan


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
    if job.route == "dense":
        return replace(_run_dense(job, lane, sink, cache), device=lane.device)
    inputs = Inputs(job, lane)
    if job.route == "blocks":
        return replace(_run_blocks(job, lane, inputs, sink, stats), device=lane.device)
    inputs.start_hashing()
    if job.route == "copy":
        return _write(job, inputs, sink)
    return replace(_run_factors(job, lane, inputs, sink, lora), device=lane.device)


def _run_blocks(job: Job, lane: Lane, inputs: Inputs, sink: Sink, stats: Any) -> Done:
    """Merge block by block: read the stack, merge it, write the result."""
    if stats is None:
        stats = _scan_tensor(job, lane, inputs)
    inputs.start_hashing()
    known = {} if stats is None else {"stats": stats}

    def merge(stack: torch.Tensor, first: int) -> Any:
        return job.spec.function(stack, view=inputs.view(first), **known, **job.bound)

    out = Result(job, sink)
    for base, stack, merged in _steps(job, lane, inputs, blocks(job), merge):
        if job.spec.takes == "deltas":
            out.inputs(base, stack)
            delta = merged()
            out.block(base, delta, base + delta)
        else:
            result = merged()
            origin = base if job.base else stack[0].clone()
            out.inputs(origin, stack.sub_(origin))
            out.block(origin, result - origin, result)
    return out.done(inputs)


def _scan_tensor(job: Job, lane: Lane, inputs: Inputs) -> Any:
    """What the method must know of the whole tensor first, if anything."""
    make = job.spec.scan
    scan = make(len(job.experts), job.output.entries, **job.bound) if make else None
    if scan is None:
        return None
    turn = 0
    while turn < scan.passes:  # closing a turn may ask for another
        run_scan(job, lane, scan, turn, inputs)
        scan.close(turn)
        turn += 1
    return scan.result()


def _run_dense(job: Job, lane: Lane, sink: Sink, cache: Cache | None) -> Done:
    rows, columns = job.output.matrix
    spec, device = job.spec, lane.device
    kept = Kept.read(cache.path(job, device), device) if cache and spec.parts else None
    cached = kept is not None
    if kept is None:
        inputs = Inputs(job, lane)
        inputs.start_hashing()
        whole = torch.empty(len(job.experts), rows, columns)
        for first, last in blocks(job):
            base, whole[:, first:last] = inputs.block(first, last)
            check_base(job, base)
        norms = tuple(frobenius(d) for d in whole)
        refuse_nonfinite(job, norms, whole)
        if cache and spec.parts:
            kept = Kept(spec.parts(whole.to(device), view=job.view, **job.bound), inputs.digests(), norms)
            kept.write(cache.path(job, device))
        else:
            result = spec.function(whole.to(device), view=job.view, **job.bound)
        del whole
    if kept is not None:
        result = kept.parts.merged(job.bound["weight"], job.bound["scaling"]).dense()
    digests, norms = (kept.digests, kept.norms) if kept else (inputs.digests(), norms)
    merged = result.cpu().reshape(rows, columns)
    base_again = Inputs(replace(job, experts=()), lane)
    done = _write(job, base_again, sink, lambda first, last: merged[first:last])
    return replace(done, deltas=norms, inputs=digests, cached=cached)


def _run_factors(job: Job, lane: Lane, inputs: Inputs, sink: Sink, lora: bool) -> Done:
    assert job.spec.factors is not None
    for t, delta in enumerate(inputs.low_rank):
        if delta is not None and not (delta.left.isfinite().all() and delta.right.isfinite().all()):
            raise CheckpointError(nonfinite(job, job.view.expert(t)))
    on_device = [d and LowRank(d.left.to(lane.device), d.right.to(lane.device)) for d in inputs.low_rank]
    there = job.spec.factors(on_device, view=job.view, **job.bound)
    assert isinstance(there, LowRank)
    merged = LowRank(there.left.cpu(), there.right.cpu())
    norms = tuple(product_norm(d) for d in inputs.low_rank)
    if lora:
        size = product_norm(merged)
        return Done(job.output.name, sink.write_factors(job, merged), {}, size, 0.0, norms, size, merged.rank)
    return replace(_write(job, inputs, sink, merged.rows), deltas=norms, rank=merged.rank)


def _write(job: Job, inputs: Inputs, sink: Sink, delta_rows: Callable[[int, int], torch.Tensor] | None = None) -> Done:
    """Write base plus merged delta, block by block; without ``delta_rows`` the base alone."""
    out = Result(job, sink)
    for first, last in blocks(job):
        base = inputs.base(first, last)
        delta = delta_rows(first, last) if delta_rows else None
        out.block(base, delta, base if delta is None else base + delta)
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
