"""Average pulled towards the base as far as the experts disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triune._lazy import torch
from triune.methods._lowrank import LowRank
from triune.methods._spec import Grain, Scan, Semantics, View, merge_method
from triune.methods.linear import combine


class Gram(Scan):
    """Inner products of the deltas, ``[experts, experts]`` float64."""

    def __init__(self, models: int) -> None:
        self.products = torch.zeros(models, models, dtype=torch.float64)

    def see(self, turn: int, deltas: torch.Tensor, view: View) -> None:
        flat = deltas.reshape(len(deltas), -1).double()
        self.products += (flat @ flat.T).cpu()

    def result(self) -> torch.Tensor:
        return self.products


def ratio(gram: torch.Tensor, semantics: str) -> torch.Tensor:
    """Equation 6 of the paper: t = N c / (1 + (N - 1) c), c the mean cosine of all pairs; ``[..., N, N] -> [...]``."""
    n = gram.shape[-1]
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    products = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    smallest = 1e-6 if semantics == "mergekit" else torch.finfo(torch.float64).tiny
    cosines = (gram / products.clamp(min=smallest)).clamp(-1, 1)
    first, second = torch.triu_indices(n, n, offset=1)
    c = cosines[..., first, second].mean(-1)
    denominator = 1 + (n - 1) * c
    singular = denominator.abs() < 1e-6
    t = torch.where(singular, 0.0, n * c / denominator.where(~singular, 1.0))
    return t if semantics == "mergekit" else t.clamp(0, 1)


def stock_factors(factors: Sequence[LowRank | None], *, filter_wise: bool, semantics: str, view: View) -> LowRank:
    n = len(factors)
    gram = torch.zeros(n, n, dtype=torch.float64)
    for i, a in enumerate(factors):
        for j, b in enumerate(factors):
            if a is not None and b is not None:
                left, right = a.left.double().T @ b.left.double(), a.right.double() @ b.right.double().T
                gram[i, j] = (left * right).sum()
    return combine(factors, [float(ratio(gram, semantics)) / n] * n, view)


def grain_of(bound: Mapping[str, Any], view: View) -> Grain:
    return "row" if bound["filter_wise"] else "entry"


@merge_method(
    title="Model Stock",
    paper="https://arxiv.org/abs/2403.19522",
    minimum=2,
    grain_of=grain_of,
    scan=lambda models, entries, *, filter_wise, semantics: None if filter_wise else Gram(models),
    factors=stock_factors,
    not_low_rank=lambda bound: "filter_wise scales every row by itself. Leave it out" if bound["filter_wise"] else None,
)
def model_stock(
    deltas: torch.Tensor,
    *,
    filter_wise: bool = False,
    semantics: Semantics = "mergekit",
    view: View | None = None,
    stats: torch.Tensor | None = None,
) -> torch.Tensor:
    """Average the deltas, then shrink them by how much they disagree.

    Model Stock (Jang et al., ECCV 2024), Section 4.2. For each tensor, with c the mean cosine between the deltas of all
    pairs of N experts:

        t = N c / (1 + (N - 1) c),    theta = theta_0 + t * mean_t delta_t

    Where implementations part ways, ours:
        - averages the pairwise cosines (the authors' answer on their tracker, and mergekit); fusion_bench averages angles;
        - ``semantics: mergekit`` leaves t as it is, and bounds the product of two norms below by 1e-6, which treats tiny
          deltas (norm layers) as unrelated; ``paper`` clamps t to [0, 1], so that experts at odds fall back to the base
          instead of being pushed beyond it, and takes the cosine at any size;
        - where the denominator is 0 (opposing experts) t is 0, the base.

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32; at least two experts.
        filter_wise: one t for each row instead of each tensor; a vector is one row.

    Returns:
        The merged delta, ``[...]`` float32.

    Cost: two passes; ``O(experts^2 * entries)``, inner products in float64.

    Example:
        Cosine 0.5 between two experts: t = 2 * 0.5 / 1.5 = 2/3, and the mean is (1.5, 0.866).

        >>> model_stock(torch.tensor([[2.0, 0.0], [1.0, 3.0**0.5]]))
        tensor([1.0000, 0.5774])
    """
    if stats is None:
        rows = deltas.reshape(len(deltas), -1, deltas.shape[-1] if deltas.dim() > 1 else 1).double()
        t = ratio(torch.einsum("irc,jrc->rij", rows, rows), semantics).to(deltas)
        t = t.reshape(*deltas.shape[1:-1], 1) if deltas.dim() > 1 else t.reshape(())
    else:
        t = ratio(stats, semantics).to(deltas)
    return t * deltas.mean(0)
