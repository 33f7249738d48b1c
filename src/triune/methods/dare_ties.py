"""Drop at random, rescale, then TIES."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from triune._lazy import torch
from triune.methods._ops import check_density, elect_and_average, elect_and_fuse, per_model
from triune.methods._scan import GlobalTrim, GlobalTrimScan, trim
from triune.methods._spec import Density, Interval, Scaling, Scan, Semantics, View, Weight, merge_method
from triune.methods.dare_linear import drop_and_rescale, rescale_scan


def scan(
    models: int,
    entries: int,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    trim_density: float,
    rescale: bool,
    semantics: str,
    **_: Any,
) -> Scan | None:
    if semantics == "mergekit":
        return rescale_scan(models, entries, density=density, rescale=rescale, semantics=semantics)

    def dropped(deltas: torch.Tensor, view: View) -> torch.Tensor:
        return drop_and_rescale(deltas, view, density, rescale, None)

    return GlobalTrimScan([trim_density] * models, weight, dropped)


@merge_method(title="DARE-TIES", paper="https://arxiv.org/abs/2311.03099", scan=scan, check=check_density)
def dare_ties(
    deltas: torch.Tensor,
    *,
    weight: Weight,
    density: Density = 1.0,  # type: ignore[assignment]
    trim_density: Annotated[float, Interval("(0, 1]")] = 0.2,
    lambda_: Scaling = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    semantics: Semantics = "mergekit",
    view: View,
    stats: Any = None,
) -> torch.Tensor:
    """Drop entries at random and scale up the rest, then elect signs and combine the deltas that agree.

    DARE (Yu et al., ICML 2024) before TIES-Merging (Yadav et al., NeurIPS 2023). Where implementations part ways:
        - ``semantics: mergekit`` lets DARE replace TIES's trim, and adds up the agreeing deltas (``normalize: true``
          averages them);
        - ``semantics: paper`` runs the whole of TIES on the dropped deltas, as the authors' code does: a trim to
          ``trim_density`` over the whole model, election, average. The election sees the masks, so another seed can turn
          signs: the seed is in the lock file.

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32.
        weight: coefficient of each expert.
        density: fraction of entries that DARE keeps.
        trim_density: fraction that TIES keeps of them in the whole model; ``paper`` only.
        lambda: factor of the merged delta.
        normalize: average instead of adding up; ``paper`` always averages.
        rescale: scale DARE's survivors up.

    Returns:
        The merged delta, ``[...]`` float32.

    Cost: two passes, four with ``paper``.

    Example:
        With nothing dropped, the agreeing deltas are added up.

        >>> dare_ties(torch.tensor([[4.0, -1.0], [1.0, 2.0]]), weight=1.0, density=1.0)
        tensor([5., 2.])
    """
    w = per_model(weight, deltas)
    if isinstance(stats, GlobalTrim):
        survivors = trim(drop_and_rescale(deltas, view, density, rescale, None), stats.cuts)
        return lambda_ * elect_and_average(w * survivors, w, stats.majority)
    return lambda_ * elect_and_fuse(w * drop_and_rescale(deltas, view, density, rescale, stats), w, normalize)
