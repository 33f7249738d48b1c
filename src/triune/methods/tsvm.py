"""Task Singular Vectors Merging: keep each expert's leading singular triplets, make them orthogonal, add them up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from triune._lazy import torch
from triune.methods._lowrank import LowRank
from triune.methods._ops import per_model
from triune.methods._spec import Grain, Interval, Scaling, View, Weight, merge_method
from triune.methods._spectral import numerical_rank, orthogonalise, truncated_svds
from triune.methods.linear import combine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from triune.methods._spectral import Delta, Orthogonal, RankRule

EMBEDDINGS = ("embed_tokens", "embed_in", "embed_out", "embed_positions", "word_embeddings", "lm_head", "wte", "wpe")
"""A matrix with one of these in its name has a row for each token or position, not for each neuron."""

FIXED = 96 << 20
"""Bytes for float64 panels and the linear algebra library's own buffers, whatever the shape."""

Tolerance = Annotated[float, Interval("[0, 1)")]
VectorRule = Literal["mean", "sum"]
Embeddings = Literal["mean", "svd"]


def is_averaged(shape: tuple[int, ...], experts: int, name: str, embeddings: str) -> bool:
    """Whether a tensor goes without SVD: vectors, embeddings, and matrices with a side below the number of experts."""
    if len(shape) != 2 or min(shape) < experts:
        return True
    return embeddings == "mean" and any(part in name for part in EMBEDDINGS)


def average(deltas: torch.Tensor, weight: Sequence[float], scaling: float, vector_rule: str) -> torch.Tensor:
    """``scaling`` times the mean, or the sum, of the weighted deltas."""
    share = scaling / len(weight) if vector_rule == "mean" else scaling
    return (per_model(weight, deltas) * deltas).sum(0) * share


def average_factors(
    factors: Sequence[LowRank | None], weight: Sequence[float], scaling: float, vector_rule: str, view: View
) -> LowRank:
    """The same for low-rank deltas: exact, the factors side by side."""
    share = scaling / len(weight) if vector_rule == "mean" else scaling
    return combine(factors, [w * share for w in weight], view)


def nonzero(deltas: Iterable[Delta | None]) -> list[Delta | None]:
    """None in place of experts that left the tensor as it was: they have no directions, and no SVD is spent on them."""
    return [delta if delta is not None and all(bool(a.any()) for a in _arrays(delta)) else None for delta in deltas]


def _arrays(delta: Delta) -> tuple[torch.Tensor, ...]:
    return (delta.left, delta.right) if isinstance(delta, LowRank) else (delta,)


def decompose(
    deltas: Iterable[tuple[Delta | None, RankRule | None]],
    shares: Sequence[float],
    polar_tol: float,
    shape: tuple[int, ...],
) -> Orthogonal:
    """TSVM proper, on deltas with their rank rules, which may come one at a time; None is zero."""
    return orthogonalise(truncated_svds(deltas), shares, polar_tol, shape)


def equal_share(shape: tuple[int, ...], experts: int) -> RankRule:
    """The paper's rank: for each expert an equal share of the smaller side; and no rounding noise."""
    return lambda values: min(numerical_rank(values, shape), min(shape) // experts)


def placed(view: View | None, deltas: torch.Tensor) -> View:
    """The view of a whole stack, told the tensor's shape where it does not know."""
    return view if view and view.shape else replace(view or View(), shape=tuple(deltas.shape[1:]))


def with_shape(view: View, factors: Sequence[LowRank | None]) -> View:
    """The view, told the tensor's shape by the factors where it does not know."""
    return view if view.shape else replace(view, shape=next(f.shape for f in factors if f is not None))


def tsvm_factors(
    factors: Sequence[LowRank | None],
    *,
    weight: Sequence[float],
    scaling: float,
    polar_tol: float,
    vector_rule: str,
    embeddings: str,
    view: View,
) -> LowRank:
    view = with_shape(view, factors)
    if is_averaged(view.shape, len(factors), view.tensor, embeddings):
        return average_factors(factors, weight, scaling, vector_rule, view)
    return tsvm_parts(factors, polar_tol=polar_tol, view=view).merged(weight, scaling)


def tsvm_parts(deltas: Sequence[Delta | None] | torch.Tensor, *, polar_tol: float, view: View, **_: Any) -> Orthogonal:
    """What neither weight nor scaling changes: the decompositions, which take nearly all of the time."""
    rule = equal_share(view.shape, len(deltas))
    return decompose(((d, rule) for d in nonzero(deltas)), [1.0] * len(deltas), polar_tol, view.shape)


def tsvm_grain(bound: Mapping[str, Any], view: View) -> Grain:
    """Averages go entry by entry; a singular value needs the whole matrix."""
    averaged = is_averaged(view.shape, len(bound["weight"]), view.tensor, bound["embeddings"])
    return "entry" if averaged else "tensor"


def tsvm_workspace(bound: Mapping[str, Any], experts: int, shape: tuple[int, ...]) -> int:
    """Peak bytes of one call, the stack of deltas included."""
    return peak_bytes(experts, shape, copies=0)


def peak_bytes(experts: int, shape: tuple[int, ...], copies: int) -> int:
    """The largest of the four stages. ``copies`` counts the matrices made of each expert before it is decomposed."""
    (m, n), small, large = shape, min(shape), max(shape)
    k = small // experts
    matrix, vectors = 4 * m * n, 4 * (m + n) * k * experts
    prepare = 2 * copies * matrix  # the last one goes when the next is done
    eigh = 32 * small**2  # Gram matrix, eigenvectors, and twice that for LAPACK
    project = 16 * small * k + 8 * k**2 + 4 * large * k
    decompose = vectors + max(prepare, copies * matrix + max(eigh, project))
    orthogonalise = vectors + max(2 * vectors, 32 * (k * experts) ** 2)  # twice: as bytes, for a cache
    multiply = vectors + matrix
    return experts * matrix + max(decompose, orthogonalise, multiply) + FIXED


@merge_method(
    title="TSVM",
    paper="https://arxiv.org/abs/2412.00081",
    grain_of=tsvm_grain,
    workspace=tsvm_workspace,
    factors=tsvm_factors,
    parts=tsvm_parts,
    from_mergekit=False,
)
def tsvm(
    deltas: torch.Tensor,
    *,
    weight: Weight = 1.0,  # type: ignore[assignment]
    scaling: Scaling = 1.0,
    polar_tol: Tolerance = 1e-6,
    vector_rule: VectorRule = "mean",
    embeddings: Embeddings = "mean",
    view: View | None = None,
) -> torch.Tensor:
    """Keep each expert's leading singular triplets, make the experts' singular vectors orthogonal, add up.

    Task Singular Vectors Merging (Gargiulo et al., CVPR 2025), Algorithm 1. For T experts and an m x n matrix with
    r = min(m, n):

        truncate       d_t = U_t S_t V_t^T, cut to the floor(r / T) largest singular values
        side by side   U = [U_1 .. U_T], V = [V_1 .. V_T], S = diag(w_1 S_1 .. w_T S_T)
        orthogonalise  U_p = U (U^T U)^(-1/2), V_p = V (V^T V)^(-1/2): the nearest orthonormal columns
        out            scaling * U_p S V_p^T

    A sum over experts, not a mean: orthogonal experts simply add up, while directions that experts share count once.

    Where implementations part ways, ours:
        - drops directions in which U or V has a singular value below ``polar_tol`` times its largest. The authors' code
          completes them arbitrarily, so two equal experts merge to themselves plus noise of the same size;
        - leaves out experts that did not change the tensor, and singular values at rounding level: their vectors are
          arbitrary, yet would rotate those of the others;
        - averages embeddings and the output head like vectors (``embeddings: svd`` decomposes them). In the authors'
          CLIP models they are frozen; fusion_bench decomposes them unless told otherwise;
        - takes floor(r / T) in integers: the authors' int(r * (1 / T)) may come out one lower.

    Args:
        deltas: expert minus base, ``[experts, ...]`` float32. Matrices are merged as above; all other tensors,
            embeddings, and matrices with a side below the number of experts are averaged.
        weight: factor of each expert's singular values; at weight 0 its vectors still keep their place.
        scaling: factor of the merged delta, the paper's alpha.
        polar_tol: see above, in [0, 1). Below 1e-5 it acts like 1e-5: float32 experts tell no smaller angles apart.
        vector_rule: ``mean`` (the authors' code) or ``sum`` for what is averaged; ``scaling`` applies to both.
        embeddings: ``mean`` or ``svd``, for matrices named like ``embed_tokens``, ``lm_head``, ``wte``.

    Returns:
        The merged delta, ``[...]`` float32.

    Raises:
        CheckpointError: a delta holds NaN or infinity.

    Cost: for each expert one eigendecomposition of size r in float64, then two of size at most r; nothing random.
    Low-rank experts (LoRA): O((m + n) R^2) for R the sum of the ranks, and the result has rank at most R, exactly.

    Example:
        Two rank-1 experts that share no direction are added up; where they are the same, they count once.

        >>> one, two = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> tsvm(torch.stack([one, two]))
        tensor([[3., 0.], [0., 2.]])
        >>> tsvm(torch.stack([one, one]))
        tensor([[3.0000, 0.0000], [0.0000, 0.0000]])
    """
    view = placed(view, deltas)
    if is_averaged(view.shape, len(deltas), view.tensor, embeddings):
        return average(deltas, weight, scaling, vector_rule)
    return tsvm_parts(deltas, polar_tol=polar_tol, view=view).merged(weight, scaling).dense()
