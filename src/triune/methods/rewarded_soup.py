"""Interpolation of models tuned for different rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from triune._lazy import torch
from triune.errors import ParameterError
from triune.methods._lowrank import LowRank
from triune.methods._ops import per_model
from triune.methods._spec import Interval, PerModel, View, merge_method
from triune.methods.linear import combine

Simplex = Annotated[PerModel[float], Interval("[0, 1]")]


def check_simplex(bound: Mapping[str, Any]) -> None:
    total = sum(bound["weight"])
    if abs(total - 1) > 1e-6:
        raise ParameterError(
            f"weight: rewarded_soup takes a point of the simplex: the weights must add up to 1, got {total:g} from "
            f"{list(bound['weight'])}. Divide each by {total:g}, or use linear."
        )


def soup_factors(factors: Sequence[LowRank | None], *, weight: Sequence[float], space: str, view: View) -> LowRank:
    if space != "lora_factors":
        return combine(factors, weight, view)
    # The authors' code skips adapters with coefficient zero.
    pairs = [(f, w) for f, w in zip(factors, weight, strict=True) if f is not None and w != 0]
    if not pairs:
        return combine(factors, weight, view)
    if len({f.rank for f, _ in pairs}) > 1:
        ranks = [f.rank for f, _ in pairs]
        raise ParameterError(
            f"space: lora_factors averages A and B entry by entry, so all adapters need one rank, got {ranks} in "
            f"{view.tensor}. Use space: lora_delta."
        )
    return LowRank(sum_of([f.left * w for f, w in pairs]), sum_of([f.right * w for f, w in pairs]))


def sum_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(tensors)).sum(0)


@merge_method(
    title="Rewarded Soup",
    paper="https://arxiv.org/abs/2306.04488",
    takes="tensors",
    check=check_simplex,
    factors=soup_factors,
    from_mergekit=False,
)
def rewarded_soup(
    tensors: torch.Tensor,
    *,
    weight: Simplex,
    space: Literal["full", "lora_delta", "lora_factors"] = "full",
    view: View | None = None,
) -> torch.Tensor:
    """Interpolate models that were tuned from one start for different rewards.

    Rewarded Soups (Rame et al., NeurIPS 2023), Equation 1:

        theta(lambda) = sum_t lambda_t theta_t,    lambda_t >= 0,   sum_t lambda_t = 1

    Choose lambda afterwards: each point of the simplex is one preference between helpful, honest and harmless.

    Where implementations part ways: the authors' code for LLMs averages the LoRA factors, (sum lambda B)(sum lambda A),
    which is not the average of the products: it has cross terms. ``space: lora_factors`` is that; ``lora_delta`` averages
    the products, exactly, and equals ``full``, the paper's mathematics. In the factor space our A and B carry the LoRA
    scale in B, as the adapters' own scales may differ.

    Args:
        tensors: ``[experts, ...]`` float32.
        weight: lambda, a point of the simplex.
        space: what is averaged. The two LoRA spaces need adapters on one base.

    Returns:
        ``[...]`` float32.

    Raises:
        ParameterError: a weight lies outside [0, 1], they do not add up to 1, or ranks differ in ``lora_factors``.

    Cost: one pass, ``O(experts * entries)``.

    Example:
        >>> rewarded_soup(torch.tensor([[0.0, 4.0], [8.0, 0.0]]), weight=[0.25, 0.75])
        tensor([6., 1.])
    """
    # From the first model on, so that equal models give exactly themselves.
    return tensors[0] + (per_model(weight, tensors) * (tensors - tensors[0])).sum(0)
