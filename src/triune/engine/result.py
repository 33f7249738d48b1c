"""One job's result on its way out: cast, hashed, written, and measured against its inputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from triune._lazy import torch
from triune.checkpoint.reader import torch_dtype
from triune.engine.inputs import Inputs
from triune.engine.job import Done, Job
from triune.engine.sinks import Sink
from triune.errors import CheckpointError
from triune.methods._lowrank import LowRank


class Result:
    """Takes a tensor's blocks in order: casts, writes and hashes them, and adds up squares for the gate.

    The norms of the inputs also tell, at no further cost, whether all their numbers are finite.
    """

    def __init__(self, job: Job, sink: Sink) -> None:
        self.job, self.sink = job, sink
        self.dtype, self.digest, self.at = torch_dtype(job.output.dtype), hashlib.sha256(), 0
        self.merged = self.base = self.merged_delta = 0.0
        self.deltas = [0.0] * len(job.experts)

    def inputs(self, base: torch.Tensor, deltas: torch.Tensor) -> None:
        norms = [frobenius(d) for d in deltas]
        check_base(self.job, base)
        refuse_nonfinite(self.job, norms, deltas)
        self.deltas = [a + b * b for a, b in zip(self.deltas, norms, strict=True)]

    def block(self, base: torch.Tensor, delta: torch.Tensor | None, result: torch.Tensor) -> None:
        norm = check_base(self.job, base)
        cast = result.to(self.dtype).contiguous()
        self.base += norm**2
        self.merged += frobenius(cast.float()) ** 2 if self.job.output.dtype == "F16" else frobenius(result) ** 2
        self.merged_delta += frobenius(delta) ** 2 if delta is not None else 0.0
        data = cast.reshape(-1).view(torch.uint8).numpy().data
        self.digest.update(data)
        self.sink.write(self.job.output, self.at, data)
        self.at += len(data)

    def done(self, inputs: Inputs) -> Done:
        merged, base, merged_delta, *deltas = (
            math.sqrt(x) if x == x else math.nan for x in (self.merged, self.base, self.merged_delta, *self.deltas)
        )
        digest = self.digest.hexdigest()
        return Done(self.job.output.name, digest, inputs.digests(), merged, base, tuple(deltas), merged_delta)


def frobenius(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def product_norm(delta: LowRank | None) -> float:
    if delta is None or delta.rank == 0:
        return 0.0
    left, right = delta.left.double().T @ delta.left.double(), delta.right.double() @ delta.right.double().T
    return math.sqrt(max(float((left * right).sum()), 0.0))


def check_base(job: Job, base: torch.Tensor) -> float:
    """The norm of some rows of the base, which must be numbers."""
    norm = frobenius(base)
    if not math.isfinite(norm) and not bool(base.isfinite().all()):
        raise CheckpointError(nonfinite(job, "the base" if job.base else job.view.expert(0)))
    return norm


def refuse_nonfinite(job: Job, norms: Sequence[float], deltas: torch.Tensor) -> None:
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
