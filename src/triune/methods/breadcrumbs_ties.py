"""Keep the middle of each delta, then elect signs."""

from __future__ import annotations

from typing import Any

from triune._lazy import torch
from triune.methods._ops import check_density, elect_and_average, elect_and_fuse, per_model
from triune.methods._spec import Density, Scaling, Semantics, View, Weight, merge_method
from triune.methods.breadcrumbs import Gamma, grain_of, middle, scan


@merge_method(
    title="Breadcrumbs-TIES",
    paper="https://arxiv.org/abs/2312.06795",
    grain_of=grain_of,
    scan=scan,
    check=check_density,
)
def breadcrumbs_ties(
    deltas: torch.Tensor,
    *,
    weight: Weight,
    density: Density = 1.0,  # type: ignore[assignment]
    gamma: Gamma = 0.01,  # type: ignore[assignment]
    lambda_: Scaling = 1.0,
    normalize: bool = False,
    semantics: Semantics = "mergekit",
    view: View | None = None,
    stats: Any = None,
) -> torch.Tensor:
    """Drop the largest and the smallest entries of each delta, then elect signs and combine the deltas that agree.

    The mask of ``breadcrumbs`` in place of TIES's trim; the combination comes from mergekit, no paper defines it.

    Where implementations part ways: ``semantics: mergekit`` masks each tensor as a whole, elects + on an exact 0 and adds
    up (``normalize: true`` averages); ``semantics: paper`` joins the two official codes: masks by row, then TIES's average,
    - on an exact 0.

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32.
        weight: coefficient of each expert.
        density: fraction of entries kept.
        gamma: fraction of the largest entries dropped first.
        lambda: factor of the merged delta.
        normalize: average instead of adding up; ``paper`` always averages.

    Returns:
        The merged delta, ``[...]`` float32.

    Cost: as ``breadcrumbs``.

    Example:
        >>> d = torch.tensor([[9.0, 5.0, 4.0, 0.1], [0.2, -6.0, 3.0, 8.0]])
        >>> breadcrumbs_ties(d, weight=1.0, density=0.5, gamma=0.25)
        tensor([ 0., -6.,  7.,  0.])
    """
    w = per_model(weight, deltas)
    weighted = w * middle(deltas, view, density, gamma, stats)
    if semantics == "paper":
        return lambda_ * elect_and_average(weighted, w, majority=-1.0)
    return lambda_ * elect_and_fuse(weighted, w, normalize)
