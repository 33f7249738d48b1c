"""Merge tensors that are already in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triune._lazy import torch
from triune.errors import CheckpointError
from triune.methods import find
from triune.methods._spec import View


def merge_tensors(
    method: str,
    experts: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    name: str = "",
    seed: int = 0,
) -> torch.Tensor:
    """Merge one tensor of several models.

    Args:
        method: a name of ``triune methods``.
        experts: the same parameter of each expert, any floating dtype.
        base: the base's; needed by every method that works on deltas.
        parameters: as in a recipe; a list holds one value for each expert.
        name: of the parameter; it keys random masks and tells embeddings from other matrices.
        seed: for methods that draw at random.

    Returns:
        The merged tensor, in the base's dtype (the first expert's where there is no base).

    Example:
        >>> import torch
        >>> base, a, b = torch.zeros(2), torch.tensor([4.0, -1.0]), torch.tensor([1.0, 2.0])
        >>> merge_tensors("ties", [a, b], base, parameters={"weight": 1.0})
        tensor([2.5000, 2.0000])
    """
    spec = find(method)
    shapes = {tuple(e.shape) for e in experts} | ({tuple(base.shape)} if base is not None else set())
    if len(shapes) != 1:
        raise CheckpointError(f"All tensors must have one shape, got {sorted(shapes)}.")
    like = experts[0] if base is None else base
    stack = torch.stack([e.float() for e in experts])
    view = View(name, seed=seed, shape=tuple(like.shape))
    if spec.takes == "tensors":
        return spec(stack, view=view, **dict(parameters or {})).to(like.dtype)
    if base is None:
        raise CheckpointError(f"{spec.name} works on deltas: give it the base, too.")
    return (base.float() + spec(stack - base.float(), view=view, **dict(parameters or {}))).to(like.dtype)
