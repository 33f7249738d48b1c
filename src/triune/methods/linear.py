"""Weighted average of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triune._lazy import torch
from triune.errors import ParameterError
from triune.methods._lowrank import LowRank
from triune.methods._ops import per_model
from triune.methods._spec import View, Weight, merge_method


def check_sum(bound: Mapping[str, Any]) -> None:
    if bound["normalize"] and abs(sum(bound["weight"])) < 1e-8:
        raise ParameterError(
            f"weight: the weights {list(bound['weight'])} add up to zero, so normalize: true would divide by zero. "
            "Change a weight or set normalize: false."
        )


def combine(factors: Sequence[LowRank | None], coefficients: Sequence[float], view: View) -> LowRank:
    """``sum_t c_t * left_t @ right_t`` as one low-rank matrix, exactly: the factors side by side."""
    pairs = [(f, c) for f, c in zip(factors, coefficients, strict=True) if f is not None and c != 0]
    if not pairs:
        return LowRank(torch.zeros(view.shape[0], 0), torch.zeros(0, view.shape[1]))
    return LowRank(torch.cat([f.left * c for f, c in pairs], 1), torch.cat([f.right for f, _ in pairs], 0))


def linear_factors(
    factors: Sequence[LowRank | None], *, weight: Sequence[float], normalize: bool, view: View
) -> LowRank:
    return combine(factors, [w / sum(weight) for w in weight], view)


def scales_the_base(bound: Mapping[str, Any]) -> str | None:
    total = sum(bound["weight"])
    if bound["normalize"] or abs(total - 1) < 1e-6:
        return None
    rule = f"weights that add up to {total:g} without normalize scale the base too, which no adapter can express"
    return f"{rule}. Set normalize: true"


@merge_method(
    title="Linear (Model Soups)",
    paper="https://arxiv.org/abs/2203.05482",
    takes="tensors",
    aliases=("weight_average",),
    check=check_sum,
    factors=linear_factors,
    not_low_rank=scales_the_base,
)
def linear(tensors: torch.Tensor, *, weight: Weight, normalize: bool = True, view: View | None = None) -> torch.Tensor:
    """Average the models, each with its weight.

    Model Soups (Wortsman et al., ICML 2022), uniform soup when all weights are equal:

        theta = sum_t w_t theta_t / sum_t w_t

    Where implementations part ways, ours:
        - adds up in float32 whatever the inputs are, and rounds once at the end;
        - ignores a base model that is not listed among the models (mergekit asks it for a weight and stops);
        - computes the normalised sum as theta_1 + sum_t w_t (theta_t - theta_1) / sum_t w_t, the same number, so that
          equal models average to exactly themselves.

    Args:
        tensors: ``[experts, ...]`` float32.
        weight: coefficient of each model; any sign.
        normalize: divide by the sum of the weights.

    Returns:
        ``[...]`` float32.

    Raises:
        ParameterError: the weights add up to zero while ``normalize`` is on.

    Cost: one pass, ``O(experts * entries)``.

    Example:
        >>> linear(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), weight=[3, 1])
        tensor([1.5000, 3.0000])
    """
    w = per_model(weight, tensors)
    if not normalize:
        return (w * tensors).sum(0)
    first = tensors[0]
    return (tensors - first).mul_(w / w.sum()).sum(0).add_(first)
