"""Keep the middle of each delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from triune._lazy import torch
from triune.methods._ops import check_density, fuse, per_model, row_ranks
from triune.methods._sampled_cuts import SampledCuts
from triune.methods._spec import (
    Density,
    Grain,
    Interval,
    PerModel,
    Scaling,
    Scan,
    Semantics,
    View,
    Weight,
    merge_method,
)

Gamma = Annotated[PerModel[float], Interval("[0, 1)")]


def band(entries: int, density: float, gamma: float) -> tuple[int, int]:
    """First and last rank (by falling magnitude, from 0) that mergekit keeps.

    >>> band(100, 0.9, 0.01)  # drops the largest and the nine smallest
    (1, 91)
    >>> band(100, 0.9, 0.2)  # density goes first: only as many outliers are removed as leave 90
    (10, 100)
    """
    count = int(density * entries)
    first = min(int(gamma * entries), entries - count)
    return first, first + count


def scan(
    models: int, entries: int, *, density: Sequence[float], gamma: Sequence[float], semantics: str, **_: Any
) -> Scan | None:
    if semantics == "paper":
        return None
    bands = [band(entries, d, g) if d < 1 else (0, entries) for d, g in zip(density, gamma, strict=True)]
    return SampledCuts(bands, entries)


def grain_of(bound: Mapping[str, Any], view: View) -> Grain:
    return "row" if bound["semantics"] == "paper" else "entry"


def middle(
    deltas: torch.Tensor, view: View | None, density: Sequence[float], gamma: Sequence[float], stats: Any
) -> torch.Tensor:
    """Zero each expert's largest and smallest entries, by cuts for the tensor or else row by row."""
    kept = []
    for t, delta in enumerate(deltas):
        if stats is not None:
            start = view.start if view else 0
            outliers, wanted = (cut.keep(delta, start) for cut in stats[t])
            kept.append(wanted - outliers)  # the outliers are among the wanted: an entry is left, or nothing
        elif density[t] >= 1:
            kept.append(delta)
        else:
            columns = delta.shape[-1] if delta.dim() else 1
            first, count = int(columns * gamma[t]), int(columns * density[t])
            ranks = row_ranks(delta, descending=True)
            kept.append(delta * ((ranks >= first) & (ranks < first + count)).to(delta.dtype))
    return torch.stack(kept)


@merge_method(
    title="Model Breadcrumbs",
    paper="https://arxiv.org/abs/2312.06795",
    grain_of=grain_of,
    scan=scan,
    check=check_density,
)
def breadcrumbs(
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
    """Drop the largest and the smallest entries of each delta, add up what is left.

    Model Breadcrumbs (Davari and Belilovsky, ECCV 2024), Section 3.2: outliers and near-zeros both do harm.

        x_t = d_t where its magnitude is neither among the `gamma` largest nor outside the `density` next ones
        out = lambda * sum_t w_t x_t

    Where implementations part ways:
        - ``semantics: mergekit`` ranks each tensor as a whole; if gamma leaves less than ``density``, fewer outliers are
          dropped. mergekit before 0.1.5 returned the base wherever gamma * entries was below 1; 0.1.5 and we do not;
        - ``semantics: paper`` follows the authors' code: ranks within each row (last dimension), drops floor(n gamma),
          keeps the next floor(n density). Their README: density 0.2, gamma 0.1, lambda 0.4;
        - a density of 1 keeps everything, outliers included, in both.

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32.
        weight: coefficient of each expert.
        density: fraction of entries kept.
        gamma: fraction of the largest entries dropped first.
        lambda: factor of the merged delta.
        normalize: divide by the sum of the weights.

    Returns:
        The merged delta, ``[...]`` float32.

    Cost: two passes and a sample, without a sort (``mergekit``), or one with a sort of each row (``paper``).

    Example:
        >>> breadcrumbs(torch.tensor([[9.0, 5.0, 4.0, 0.1]]), weight=1.0, density=0.5, gamma=0.25)
        tensor([0., 5., 4., 0.])
    """
    w = per_model(weight, deltas)
    return lambda_ * fuse(w * middle(deltas, view, density, gamma, stats), w, normalize)
