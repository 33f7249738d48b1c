"""What a plan will compute, by class of tensor, and how long that takes at rates measured on this machine."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from time import thread_time
from typing import Any

from triune._lazy import torch
from triune.engine.job import Job
from triune.methods._cost import READ, elementwise, factored, spectral

DAMPING = 12
"""Passes that R-TSVM makes over a delta: some rounds of its threshold, the damping and the sparsity."""


@dataclass(frozen=True)
class Class:
    """Tensors of one projection, shape and route."""

    name: str
    shape: tuple[int, ...]
    route: str
    count: int
    nbytes: int
    """Read and written."""
    cost: Mapping[str, int]

    @property
    def flops(self) -> int:
        """One operation for each entry of a pass, and those of the linear algebra."""
        return sum(self.cost.values())

    def seconds(self, rates: Mapping[str, float]) -> float:
        """On one lane."""
        return self.nbytes / rates["bytes"] + sum(amount / rates[kind] for kind, amount in self.cost.items())


def cost_of(job: Job, kept: bool = False) -> Counter[str]:
    """What one job computes; less where its decompositions are kept."""
    experts, entries = len(job.experts), job.output.entries
    if kept:
        m, n = job.output.matrix
        return Counter(passes=READ * entries, gemm32=2 * m * n * min(m, n))
    if job.route == "copy":
        return Counter(passes=READ * entries)
    if job.route == "blocks":
        return elementwise(job.method, experts, entries)
    if job.route == "factors":
        ranks = [s.factors.rank for s in job.experts if s.factors]
        return factored(ranks, job.output.matrix)
    return spectral(experts, job.output.matrix, DAMPING if job.method == "r_tsvm" else 0)


def classes(jobs: Iterable[Job], kept: Collection[str] = ()) -> list[Class]:
    """The jobs in groups, the costliest first. ``kept`` names tensors whose decompositions need not be made."""
    groups: dict[tuple[str, tuple[int, ...], str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((projection(job.output.name), job.output.shape, job.route), []).append(job)
    found = [
        Class(
            *key,
            len(of),
            sum(j.traffic for j in of),
            sum((cost_of(j, j.output.name in kept) for j in of), Counter[str]()),
        )
        for key, of in groups.items()
    ]
    return sorted(found, key=lambda c: (-c.flops, c.name))


def projection(name: str) -> str:
    """
    >>> projection("model.layers.11.self_attn.q_proj.weight")
    'self_attn.q_proj'
    """
    return re.sub(r"^.*\.\d+\.", "", name).removeprefix("model.").removesuffix(".weight")


def calibrate() -> dict[str, float]:
    """Bytes and operations a second on one lane of this machine, in about a quarter of a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single, double = torch.randn(512, 512), torch.randn(384, 384, dtype=torch.float64)
        small = double[:256, :256] @ double[:256, :256].T
        block, data = torch.randn(1 << 21), bytes(1 << 22)  # as much as a merge's blocks, which no core keeps to itself
        out = torch.empty_like(block)  # new memory each time would be what is measured
        return {
            "bytes": _rate(len(data), lambda: hashlib.sha256(data)),  # all that is read or written is hashed
            "passes": _rate(block.numel(), lambda: torch.mul(block, 0.5, out=out)),
            "gemm32": _rate(2 * 512**3, lambda: single @ single),
            "gemm64": _rate(2 * 384**3, lambda: double @ double),
            "eigh": _rate(9 * 256**3, lambda: torch.linalg.eigh(small)),
        }
    finally:
        torch.set_num_threads(threads)


def _rate(amount: int, work: Callable[[], Any]) -> float:
    """The best of three, after one to warm up."""
    work()
    best = math.inf
    for _ in range(3):
        start = thread_time()
        work()
        best = min(best, thread_time() - start)
    return amount / best
