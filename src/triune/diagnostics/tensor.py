"""One tensor's record: read once, block by block; only what is decomposed is held whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from triune._lazy import torch
from triune.diagnostics.entries import StackSums, change, relative
from triune.diagnostics.records import Effect, Expert, Pair, Tensor
from triune.diagnostics.spectra import Spectrum, overlap, spectrum, task_interference
from triune.engine.inputs import Inputs, Lane
from triune.engine.job import Job, blocks
from triune.engine.result import nonfinite
from triune.errors import CheckpointError
from triune.methods import find
from triune.methods._spec import View
from triune.methods._spectral import orthogonalise
from triune.methods.r_tsvm import r_tsvm_parts
from triune.methods.tsvm import equal_share, nonzero, peak_bytes

if TYPE_CHECKING:
    from triune.methods._lowrank import LowRank
    from triune.methods._spectral import Delta

SAMPLE = 1 << 18
"""Entries, in whole rows spread evenly, on which the effects of methods are measured."""

SPECTRAL = ("tsvm", "r_tsvm")


def diagnose_tensor(job: Job, lane: Lane, *, effects: Mapping[str, Mapping[str, Any]]) -> Tensor:
    """Measure one tensor.

    Args:
        job: of a TSVM plan, which tells what is decomposed and whether as factors.
        lane: buffers.
        effects: methods with their bound parameters.

    Raises:
        CheckpointError: an input holds NaN or infinity.
    """
    inputs = Inputs(job, lane)
    rows, columns = job.output.matrix
    decomposed = job.route in ("dense", "factors")
    whole = torch.empty(len(job.experts), rows, columns) if decomposed else None
    sums, sample, step = StackSums.of(len(job.experts)), [], max(1, rows * columns // SAMPLE)
    for first, last in blocks(job):
        base, stack = inputs.block(first, last)
        sums.see(base, stack)
        sample.append(stack[:, -first % step :: step].clone())
        if whole is not None:
            whole[:, first:last] = stack
    for t, entries in enumerate(sums.experts):
        if not math.isfinite(entries.two):
            raise CheckpointError(nonfinite(job, job.view.expert(t)))
    deltas: Sequence[Delta | None] = []
    if whole is not None:
        kept_low = job.route == "factors"
        deltas = nonzero(inputs.low_rank if kept_low else list(whole))
    spectra = [spectrum(d, equal_share((rows, columns), len(job.experts))) if d is not None else None for d in deltas]
    rows_seen = torch.cat(sample, dim=1)
    told = _entry_effects(job, rows_seen, effects)
    ranks: list[dict[str, int]] = [{} for _ in job.experts]
    if whole is not None:
        told |= _spectral_effects(whole, spectra, rows_seen, step, effects, ranks)
    return Tensor(
        index=job.index,
        name=job.output.name,
        shape=job.output.shape,
        base_norm=sums.base_two**0.5,
        experts=_experts(sums, spectra, ranks),
        pairs=_pairs(sums, spectra),
        interference=task_interference([s.leading for s in spectra if s]) if decomposed else None,
        effects={m: told[m] for m in effects if m in told},
    )


def memory_of(job: Job) -> int:
    """Peak bytes of :func:`diagnose_tensor` beyond those of merging the tensor."""
    rows, columns = job.output.matrix
    sample = 40 * len(job.experts) * max(SAMPLE, columns)
    bins = 12 << 20
    if job.route not in ("dense", "factors"):
        return job.nbytes + sample + bins
    experts, held = len(job.experts), 4 * (rows + columns) * min(rows, columns)
    return peak_bytes(experts, (rows, columns), copies=1) + held + sample + bins + job.nbytes // 4


def _experts(
    sums: StackSums, spectra: Sequence[Spectrum | None], ranks: Sequence[dict[str, int]]
) -> tuple[Expert, ...]:
    told = []
    sizes = relative([s.norm for s in sums.experts], sums.base_two**0.5)
    for t, entries in enumerate(sums.experts):
        threshold = entries.threshold()
        outliers, mass = entries.above(threshold)
        found = spectra[t] if spectra else None
        told.append(
            Expert(
                norm=entries.norm,
                relative=sizes[t],
                outliers=outliers,
                outlier_mass=mass,
                kurtosis=entries.kurtosis,
                hill=entries.hill(),
                hoyer=entries.hoyer,
                near_zero=entries.near_zero,
                exact_zero=entries.zeros / max(entries.count, 1),
                histogram=entries.histogram(),
                damped=entries.histogram(threshold),
                rank=len(found.values) if found else None,
                effective_rank=found.effective_rank if found else None,
                stable_rank=found.stable_rank if found else None,
                energy_kept=found.energy_kept if found else None,
                spectral_hill=found.hill() if found else None,
                knots=found.knots() if found else None,
                ranks=ranks[t],
            )
        )
    return tuple(told)


def _pairs(sums: StackSums, spectra: Sequence[Spectrum | None]) -> tuple[Pair, ...]:
    told = []
    for i, j in combinations(range(len(sums.experts)), 2):
        pair, one, two = sums.pairs[i, j], sums.experts[i], sums.experts[j]
        a, b = (spectra[i], spectra[j]) if spectra else (None, None)
        left, right = overlap(a.leading, b.leading) if a and b else (None, None)
        told.append(Pair(i, j, pair.conflict, pair.cancelled(one, two), pair.cosine(one, two), left, right))
    return tuple(told)


# --- effects ------------------------------------------------------------------------------------------------------


def _entry_effects(
    job: Job, deltas: torch.Tensor, effects: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Effect, ...]]:
    """Of the methods that work entry by entry or row by row, on the sample as if it were the tensor."""
    told = {}
    view = replace(job.view, shape=tuple(deltas.shape[1:]))
    for name, bound in effects.items():
        method = find(name)
        if method.takes == "deltas" and method.grain_at(bound, view) != "tensor":
            merged = method(deltas.clone(), view=view, **bound)
            told[name] = tuple(Effect(*e) for e in change(merged, deltas))
    return told


def _spectral_effects(
    whole: torch.Tensor,
    spectra: Sequence[Spectrum | None],
    sample: torch.Tensor,
    step: int,
    effects: Mapping[str, Mapping[str, Any]],
    ranks: Sequence[dict[str, int]],
) -> dict[str, tuple[Effect, ...]]:
    """Of TSVM, from the triplets at hand, and R-TSVM, which decomposes the damped deltas; notes the ranks of both."""
    told = {}

    def effect(merged: LowRank) -> tuple[Effect, ...]:
        return tuple(Effect(*e) for e in change(merged.left[::step] @ merged.right, sample))

    for name in SPECTRAL:
        if name not in effects:
            continue
        bound, shape = effects[name], whole[0].shape
        if name == "tsvm":
            leading = [found.leading if found else None for found in spectra]
            parts = orthogonalise(leading, [1.0] * len(whole), bound["polar_tol"], shape)
        else:
            parts = r_tsvm_parts(whole, view=View(shape=tuple(shape)), **bound)
        for own, rank in zip(ranks, parts.ranks, strict=True):
            if rank:
                own[name] = rank
        if any(parts.ranks):
            told[name] = effect(parts.merged(bound["weight"], bound["scaling"]))
    return told
