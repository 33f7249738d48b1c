"""Drop small entries with higher probability, rescale, add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from triune._lazy import torch
from triune.methods._ops import check_window, fuse, keep_at_random, magprune_probabilities, per_model
from triune.methods._scan import RescaleScan, Survivors
from triune.methods._spec import Density, Interval, PerModel, Scaling, Scan, Semantics, View, Weight, merge_method

Epsilon = Annotated[PerModel[float], Interval("[0, 0.5)")]


def keep_probabilities(deltas: torch.Tensor, density: Sequence[float], epsilon: Sequence[float]) -> list[torch.Tensor]:
    """Of every entry, by the rank of its magnitude in its row."""
    return [magprune_probabilities(d, p, e) for d, p, e in zip(deltas, density, epsilon, strict=True)]


def rescale_scan(
    models: int,
    entries: int,
    *,
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: bool,
    semantics: str,
    **_: Any,
) -> Scan | None:
    if not rescale or semantics == "paper":
        return None

    def mask(deltas: torch.Tensor, view: View) -> torch.Tensor:
        return keep_at_random(deltas, keep_probabilities(deltas, density, epsilon), view)

    return RescaleScan(models, entries, mask)


def magprune_and_rescale(
    deltas: torch.Tensor,
    view: View,
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: bool,
    stats: Survivors | None,
) -> torch.Tensor:
    """MagPrune, scaled entry by entry (the paper) or by the measured loss of magnitude, `stats` (mergekit)."""
    mask = stats.mask(deltas, view.start) if stats else None
    if stats and mask is not None:
        return mask.mul_(deltas).mul_(per_model(stats.factors, deltas))
    keep = keep_probabilities(deltas, density, epsilon)
    survivors = keep_at_random(deltas, keep, view).mul_(deltas)
    if stats:
        return survivors.mul_(per_model(stats.factors, deltas))
    return survivors.div_(torch.stack(keep)) if rescale else survivors


@merge_method(
    title="DELLA", paper="https://arxiv.org/abs/2406.11617", grain="row", scan=rescale_scan, check=check_window
)
def della_linear(
    deltas: torch.Tensor,
    *,
    weight: Weight,
    density: Density = 1.0,  # type: ignore[assignment]
    epsilon: Epsilon = 0.15,  # type: ignore[assignment]
    lambda_: Scaling = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    semantics: Semantics = "mergekit",
    view: View,
    stats: Survivors | None = None,
) -> torch.Tensor:
    """Drop entries at random, small ones more often, scale up the rest, add them up.

    DELLA (Deep et al. 2024), Section 3.1, MagPrune without election. In each row (last dimension; a vector is one row) of
    n entries, the one with the j-th smallest magnitude survives with probability

        q_j = density - epsilon + 2 * epsilon * (j - 1) / (n - 1)

    and survivors are divided by their q_j, so the expectation is the delta itself.

    Where implementations part ways:
        - ``semantics: mergekit`` replaces the division by one measured factor for each tensor, sum|d| / sum|m d|, under
          which small survivors count too little; ``paper`` divides entry by entry;
        - epsilon is mergekit's half-width; the authors' ``window_size`` is twice it;
        - a row of one entry survives with probability ``density`` (mergekit divides 0 by 0); equal magnitudes rank by
          position; ranks are exact integers at any dtype.

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32.
        weight: coefficient of each expert.
        density: mean fraction of entries kept. The authors use 0.7.
        epsilon: half-width of the range of probabilities; 0 is DARE. The authors' 0.14 window is 0.07 here.
        lambda: factor of the merged delta; the authors use 1.1.
        normalize: divide by the sum of the weights.
        rescale: scale survivors up; false leaves them.

    Returns:
        The merged delta, ``[...]`` float32.

    Raises:
        ParameterError: density - epsilon or density + epsilon lies outside (0, 1) while density is below 1.

    Cost: one pass (``paper``) or two, with a sort of each row in each.

    Example:
        >>> kept = della_linear(torch.ones(1, 1000), weight=1.0, density=0.5, epsilon=0.0, semantics="paper")
        >>> sorted(set(kept.tolist()))
        [0.0, 2.0]
    """
    w = per_model(weight, deltas)
    return lambda_ * fuse(w * magprune_and_rescale(deltas, view, density, epsilon, rescale, stats), w, normalize)
