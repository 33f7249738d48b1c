"""MagPrune, then elect signs."""

from __future__ import annotations

from triune._lazy import torch
from triune.methods._ops import check_window, elect_and_average, elect_and_fuse, per_model
from triune.methods._scan import Survivors
from triune.methods._spec import Density, Scaling, Semantics, View, Weight, merge_method
from triune.methods.della_linear import Epsilon, magprune_and_rescale, rescale_scan


@merge_method(
    title="DELLA-TIES", paper="https://arxiv.org/abs/2406.11617", grain="row", scan=rescale_scan, check=check_window
)
def della(
    deltas: torch.Tensor,
    *,
    weight: Weight,
    density: Density = 1.0,  # type: ignore[assignment]
    epsilon: Epsilon = 0.15,  # type: ignore[assignment]
    lambda_: Scaling = 1.0,
    normalize: bool = True,
    rescale: bool = True,
    semantics: Semantics = "mergekit",
    view: View,
    stats: Survivors | None = None,
) -> torch.Tensor:
    """Drop entries at random, small ones more often, then elect signs and average the deltas that agree.

    DELLA (Deep et al. 2024): MagPrune as in ``della_linear``, then TIES's election and disjoint mean:

        out = lambda * sum_{t in A} w_t x_t / sum_{t in A} w_t,    A = {t : sign(w_t x_t) = sign(sum_s w_s x_s)}

    Where implementations part ways: as in ``della_linear`` for the scaling. An exact 0 in the sum elects + with
    ``semantics: mergekit``, and - with ``paper`` (the authors' TIES falls to that side).

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32.
        weight: coefficient of each expert.
        density: mean fraction of entries kept.
        epsilon: half-width of the range of probabilities; 0 gives DARE's masks.
        lambda: factor of the merged delta.
        normalize: average; false adds up. ``paper`` always averages.
        rescale: scale survivors up.

    Returns:
        The merged delta, ``[...]`` float32.

    Raises:
        ParameterError: density - epsilon or density + epsilon lies outside (0, 1) while density is below 1.

    Cost: one pass (``paper``) or two, with a sort of each row in each.

    Example:
        >>> della(torch.tensor([[4.0, -1.0], [2.0, 3.0]]), weight=1.0, density=1.0)
        tensor([3., 3.])
    """
    w = per_model(weight, deltas)
    weighted = w * magprune_and_rescale(deltas, view, density, epsilon, rescale, stats)
    if semantics == "paper":
        return lambda_ * elect_and_average(weighted, w, majority=-1.0)
    return lambda_ * elect_and_fuse(weighted, w, normalize)
