"""Sum of deltas."""

from __future__ import annotations

from collections.abc import Sequence

from triune._lazy import torch
from triune.methods._lowrank import LowRank
from triune.methods._ops import fuse, per_model
from triune.methods._spec import Scaling, View, Weight, merge_method
from triune.methods.linear import combine


def task_factors(
    factors: Sequence[LowRank | None], *, weight: Sequence[float], lambda_: float, normalize: bool, view: View
) -> LowRank:
    total = sum(weight)
    share = total if normalize and abs(total) >= 1e-8 else 1.0
    return combine(factors, [lambda_ * w / share for w in weight], view)


@merge_method(title="Task Arithmetic", paper="https://arxiv.org/abs/2212.04089", factors=task_factors)
def task_arithmetic(
    deltas: torch.Tensor, *, weight: Weight, lambda_: Scaling = 1.0, normalize: bool = False, view: View | None = None
) -> torch.Tensor:
    """Add up the weighted deltas.

    Task Arithmetic (Ilharco et al., ICLR 2023), Section 2, with one coefficient for each expert:

        theta = theta_0 + lambda * sum_t w_t delta_t

    With three experts at weight 1 this moves three times as far as their average: common choices are lambda 0.3 to 0.5
    at weight 1. Implementations differ in defaults only (mergekit lambda 1.0, fusion_bench 0.3).

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32.
        weight: coefficient of each expert.
        lambda: factor of the merged delta (``scaling`` in the paper).
        normalize: divide by the sum of the weights, unless it is below 1e-8.

    Returns:
        The merged delta, ``[...]`` float32.

    Cost: one pass, ``O(experts * entries)``.

    Example:
        >>> task_arithmetic(torch.tensor([[1.0, -1.0], [2.0, 4.0]]), weight=[1, 0.5], lambda_=0.5)
        tensor([1.0000, 0.5000])
    """
    w = per_model(weight, deltas)
    return lambda_ * fuse(w * deltas, w, normalize)
