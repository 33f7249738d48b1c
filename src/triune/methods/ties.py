"""Trim, elect sign, merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triune._lazy import torch
from triune.methods._ops import check_density, elect_and_average, elect_and_fuse, per_model
from triune.methods._sampled_cuts import SampledCuts
from triune.methods._scan import Cut, GlobalTrim, GlobalTrimScan, trim
from triune.methods._spec import Density, Scaling, Scan, Semantics, View, Weight, merge_method


def kept(density: float, entries: int) -> int:
    """How many entries mergekit keeps: at least one, unless the density is zero."""
    return 0 if density <= 0 else max(1, int(density * entries))


def scan(models: int, entries: int, *, density: Sequence[float], semantics: str, weight: Any, **_: Any) -> Scan:
    if semantics == "paper":
        return GlobalTrimScan(density, weight)
    return SampledCuts([[kept(d, entries)] for d in density], entries)


@merge_method(title="TIES", paper="https://arxiv.org/abs/2306.01708", scan=scan, check=check_density)
def ties(
    deltas: torch.Tensor,
    *,
    weight: Weight,
    density: Density = 1.0,  # type: ignore[assignment]
    lambda_: Scaling = 1.0,
    normalize: bool = True,
    semantics: Semantics = "mergekit",
    view: View | None = None,
    stats: Any = None,
) -> torch.Tensor:
    """Trim each delta, elect one sign for each entry, average the deltas that agree with it.

    TIES-Merging (Yadav et al., NeurIPS 2023), Algorithm 1. For expert t with delta d_t = expert - base:

        trim      x_t = d_t on its `density` largest magnitudes, 0 elsewhere
        elect     s   = sign(sum_t w_t x_t)
        average   out = lambda * sum_{t in A} w_t x_t / sum_{t in A} w_t,    A = {t : sign(w_t x_t) = s}

    Where implementations part ways:
        - ``semantics: mergekit`` trims each tensor by itself and keeps exactly floor(density * entries) of it, at least
          one (equal magnitudes: the lowest index first; mergekit leaves that to its sort); a sum of exactly 0 elects +;
        - ``semantics: paper`` follows the authors' code: one threshold for each expert over the whole flattened model,
          with all entries equal to it; where the sum is 0 the sign of the whole model's majority decides;
        - PEFT elects before weighting, fusion_bench sums instead of averaging: neither is offered.

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32.
        weight: coefficient of each expert. With ``normalize`` a common factor cancels.
        density: fraction of entries each expert keeps. The paper's choice is 0.2; 1.0 trims nothing.
        lambda: factor of the merged delta; the paper's choice without validation data is 1.
        normalize: average (the paper) or, if false, add up. ``paper`` always averages.

    Returns:
        The merged delta, ``[...]`` float32.

    Raises:
        ParameterError: a density lies outside [0, 1].

    Cost: two passes and a sample, no sort. Exact all the same: where the sample misleads, histograms of the magnitudes' bits
    find the threshold in two passes more, or three.

    Example:
        >>> d = torch.tensor([[4.0, -1.0, 3.0, 0.5], [1.0, 2.0, -2.0, 0.25]])
        >>> ties(d, weight=1.0, density=0.5)
        tensor([4., 2., 3., 0.])
        >>> ties(d, weight=[0.25, 1.0], density=0.5)  # the second expert now wins entry 2
        tensor([ 4.,  2., -2.,  0.])
    """
    w = per_model(weight, deltas)
    if isinstance(stats, GlobalTrim):
        return lambda_ * elect_and_average(w * trim(deltas, stats.cuts), w, stats.majority)
    cuts: list[Cut] = [cut for (cut,) in stats]
    return lambda_ * elect_and_fuse(w * trim(deltas, cuts, view), w, normalize)
