"""Drop at random, rescale, add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triune._lazy import torch
from triune.methods._ops import check_density, fuse, keep_at_random, per_model
from triune.methods._scan import RescaleScan, Survivors
from triune.methods._spec import Density, Scaling, Scan, Semantics, View, Weight, merge_method


def rescale_scan(
    models: int, entries: int, *, density: Sequence[float], rescale: bool, semantics: str, **_: Any
) -> Scan | None:
    if not rescale or semantics == "paper":
        return None
    return RescaleScan(models, entries, lambda deltas, view: keep_at_random(deltas, density, view))


def drop_and_rescale(
    deltas: torch.Tensor, view: View, density: Sequence[float], rescale: bool, stats: Survivors | None
) -> torch.Tensor:
    """Let each entry survive with probability `density`, then divide by the density (the paper) or by the measured loss of
    magnitude, `stats` (mergekit)."""
    mask = stats.mask(deltas, view.start) if stats else None
    mask = keep_at_random(deltas, density, view) if mask is None else mask
    factors = stats.factors if stats else [1 / d if rescale else 1.0 for d in density]
    return mask.mul_(deltas).mul_(per_model(factors, deltas))


@merge_method(title="DARE", paper="https://arxiv.org/abs/2311.03099", scan=rescale_scan, check=check_density)
def dare_linear(
    deltas: torch.Tensor,
    *,
    weight: Weight,
    density: Density = 1.0,  # type: ignore[assignment]
    lambda_: Scaling = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    semantics: Semantics = "mergekit",
    view: View,
    stats: Survivors | None = None,
) -> torch.Tensor:
    """Drop most entries of each delta at random, scale up the rest, add them up.

    DARE (Yu et al., ICML 2024), Section 3.2, with task arithmetic as the merger. With drop rate p = 1 - density:

        m_t ~ Bernoulli(density) for each entry,    x_t = m_t * d_t / (1 - p),    out = lambda * sum_t w_t x_t

    so the expectation of x_t is d_t.

    Where implementations part ways:
        - ``semantics: mergekit`` scales by one measured factor for each tensor, sum|d| / sum|m d|, near 1/density for
          large tensors and noisy for small ones; ``paper`` by 1/density;
        - masks depend on (seed, expert, tensor, flat index) alone, so the same recipe gives the same masks on any number
          of threads and any device. mergekit draws from one global stream: its masks cannot be reproduced, ours agree
          with it in distribution.

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32.
        weight: coefficient of each expert.
        density: fraction of entries kept, 1 - p.
        lambda: factor of the merged delta.
        normalize: divide by the sum of the weights.
        rescale: scale survivors up; false leaves them.

    Returns:
        The merged delta, ``[...]`` float32.

    Cost: one pass (``paper``) or two; masks cost about as much as the arithmetic.

    Example:
        >>> kept = dare_linear(torch.ones(1, 1000), weight=1.0, density=0.25, semantics="paper")
        >>> sorted(set(kept.tolist())), bool(200 < (kept > 0).sum() < 300)
        ([0.0, 4.0], True)
    """
    w = per_model(weight, deltas)
    return lambda_ * fuse(w * drop_and_rescale(deltas, view, density, rescale, stats), w, normalize)
