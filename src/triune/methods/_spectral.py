"""The linear algebra behind TSVM and R-TSVM: truncated SVD and polar factors.

Every function takes a delta either as a matrix or as a :class:`LowRank` product, whose matrix is never built. What is
decomposed, and what divides by singular values, is float64 on a CPU; what is kept and the other products are float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from triune._lazy import torch
from triune.errors import CheckpointError
from triune.methods._lowrank import LowRank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Delta: TypeAlias = torch.Tensor | LowRank
    RankRule: TypeAlias = Callable[[torch.Tensor], int]
    """How many of the singular values to keep."""

PANEL = 1 << 21
"""Entries turned to float64 at a time, for matrix products."""
ROUNDING = 1e-5
"""Float32 experts cannot tell directions apart at a smaller angle: ``polar_tol`` acts like this where it is below."""
TOGETHER = 1024
"""Smaller sides up to this are decomposed together on a GPU. Larger matrices fill it one by one, we suppose; that takes less
memory."""
STEPS = 14
"""Of Newton and Schulz. Each lifts a small singular value by half of itself at most, so a stack whose largest is about a
hundred times its smallest is done then."""


@dataclass(frozen=True)
class Components:
    """The leading singular triplets of one delta: ``left @ diag(values) @ right.T``."""

    left: torch.Tensor
    """float32 ``[m, k]``, orthonormal columns."""
    values: torch.Tensor
    """float64 ``[k]``, descending."""
    right: torch.Tensor
    """float32 ``[n, k]``, orthonormal columns."""


@dataclass(frozen=True)
class Orthogonal:
    """All experts' leading triplets, made orthogonal: what a merge needs of one tensor, whatever the weights.

    K is the sum of the experts' ranks, at most the smaller side.
    """

    left: torch.Tensor
    """float32 ``[m, K]``: the polar factor of all left vectors side by side."""
    values: torch.Tensor
    """float64 ``[K]``, expert by expert."""
    right: torch.Tensor
    """float32 ``[n, K]``."""
    ranks: tuple[int, ...]
    """Triplets of each expert; 0 where it left the tensor as it was."""
    shares: tuple[float, ...]
    """Factor of each expert that its own delta decides."""

    def merged(self, weight: Sequence[float], scaling: float, *, keep: bool = False) -> LowRank:
        """``left diag(scaling * weight * share * values) right.T``. Overwrites ``left``, so that no vector is held twice,
        unless told to keep it."""
        each = [w * scaling * share for w, share in zip(weight, self.shares, strict=True)]
        factors = torch.cat([v * c for v, c in zip(torch.split(self.values, list(self.ranks)), each, strict=True)])
        left = self.left.clone() if keep else self.left
        return LowRank(left.mul_(factors.float()), self.right.T)


# --- truncated SVD ------------------------------------------------------------------------------------------------


def row_slices(shape: Sequence[int], entries: int) -> Iterator[slice]:
    """All rows of a matrix, in slices of about that many entries."""
    step = max(1, entries // max(1, shape[1]))
    return (slice(first, first + step) for first in range(0, shape[0], step))


def gram(a: torch.Tensor) -> torch.Tensor:
    """``a.T @ a`` in float64; only the lower triangle is filled in, which is all that ``eigh`` reads.

    In float32 it would lose every singular value below 3e-4 of the largest.
    """
    columns = a.shape[1]
    total = torch.zeros(columns, columns, dtype=torch.float64, device=a.device)
    step = max(64, -(-columns // 4))
    for rows in row_slices(a.shape, PANEL):
        x = a[rows].double()
        for c in range(0, columns, step):
            total[c:, c : c + step].addmm_(x[:, c:].T, x[:, c : c + step])
    return total


def eigh(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues in ascending order and eigenvectors of symmetric float64 matrices, of which it reads the lower triangles.

    What a GPU found is checked, because solvers there have returned wrong vectors without a word (PyTorch's issue 192483, on
    complex numbers).

    Raises:
        torch.linalg.LinAlgError: a solver did not find them; the executor then has the whole job done on the CPU.
    """
    values, vectors = torch.linalg.eigh(a)
    if a.is_cuda and not solves(a, values, vectors):
        raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
            "The GPU's solver returned vectors that are none."
        )
    return values, vectors


def solves(a: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor) -> bool:
    """Whether ``a`` and its decomposition do the same to a vector, for every matrix of a stack. No, where there are NaNs.

    >>> a = torch.tensor([[2.0, 0.0], [1.0, 2.0]], dtype=torch.float64)  # stands for [[2, 1], [1, 2]]
    >>> solves(a, *torch.linalg.eigh(a)), solves(a, a.diagonal(), torch.eye(2, dtype=torch.float64))
    (True, False)
    """
    x = torch.arange(1.0, a.shape[-1] + 1, dtype=a.dtype, device=a.device).cos_()
    lower = a.tril()
    product = lower @ x + lower.mT @ x - a.diagonal(dim1=-2, dim2=-1) * x
    rest = product - (vectors @ (values * (vectors.mT @ x)).unsqueeze(-1)).squeeze(-1)
    largest = values.abs().amax(-1)
    return bool((torch.linalg.vector_norm(rest, dim=-1) <= 1e-9 * largest * torch.linalg.vector_norm(x)).all())


def finite(a: torch.Tensor) -> torch.Tensor:
    """``a`` itself, or an error: a decomposition would turn one NaN into a matrix of them."""
    if not a.isfinite().all():
        raise CheckpointError("A delta holds NaN or infinity.")
    return a


def times(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``a @ b`` in the precision of ``b``, a few rows at a time, into ``out``, which may be ``a`` itself."""
    for rows in row_slices(a.shape, PANEL):
        out[rows] = a[rows].to(b.dtype) @ b
    return out


def numerical_rank(values: torch.Tensor, shape: Sequence[int]) -> int:
    """How many singular values stand out of the rounding of a float32 matrix."""
    return int((values > 1e-7 * math.sqrt(max(shape)) * values[:1]).sum())


def truncated_svd(delta: Delta, rank_of: RankRule) -> Components | None:
    """The leading triplets; ``rank_of`` says how many, given all singular values. None for none, and for a delta of zero."""
    if isinstance(delta, LowRank):
        return _svd_of_product(delta, rank_of)
    squares, vectors = eigh(finite(gram(_tall(delta))))
    found = _leading(squares, vectors, rank_of)
    del squares, vectors
    return found and _completed(delta, *found)


def truncated_svds(deltas: Iterable[tuple[Delta | None, RankRule | None]]) -> list[Components | None]:
    """:func:`truncated_svd` of each; None is zero. One at a time, so that they may be made one at a time.

    On a GPU those with a side of at most :data:`TOGETHER` all at once: from torch 2.12 on cuSOLVER takes a stack of matrices
    faster than one after the other (PyTorch's pull request 175403). We had no GPU to measure it on.
    """
    parts: list[Components | None] = []
    waiting: dict[int, tuple[torch.Tensor, RankRule]] = {}
    for t, (delta, rank_of) in enumerate(deltas):
        parts.append(None)
        if delta is None or rank_of is None:
            continue
        if isinstance(delta, torch.Tensor) and delta.is_cuda and min(delta.shape) <= TOGETHER:
            waiting[t] = delta, rank_of
        else:
            parts[t] = truncated_svd(delta, rank_of)
    if waiting:
        for t, part in zip(waiting, svds_at_once(*zip(*waiting.values(), strict=True)), strict=True):
            parts[t] = part
    return parts


def svds_at_once(deltas: Sequence[torch.Tensor], rank_rules: Sequence[RankRule]) -> list[Components | None]:
    """:func:`truncated_svd` of matrices of one shape, with a single call for all eigendecompositions."""
    squares, vectors = eigh(torch.stack([finite(gram(_tall(d))) for d in deltas]))
    found = [_leading(s, v, rank_of) for s, v, rank_of in zip(squares, vectors, rank_rules, strict=True)]
    del squares, vectors
    return [leading and _completed(delta, *leading) for delta, leading in zip(deltas, found, strict=True)]


def _tall(delta: torch.Tensor) -> torch.Tensor:
    return delta.T if delta.shape[0] < delta.shape[1] else delta


def _leading(
    squares: torch.Tensor, vectors: torch.Tensor, rank_of: RankRule
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Singular values and right vectors of a tall matrix, by the eigenvalues and -vectors of its Gram matrix."""
    values = squares.clamp_(min=0).sqrt_().flip(0)
    k = rank_of(values) if values[0] > 0 else 0
    return (values[:k].clone(), vectors[:, -k:].flip(1)) if k else None


def _completed(delta: torch.Tensor, values: torch.Tensor, v: torch.Tensor) -> Components:
    """The left vectors too."""
    tall = _tall(delta)
    u = times(tall, v / values, torch.empty(len(tall), len(values), device=v.device))
    v = v.float()
    # Rounding of the Gram matrix leaves u orthonormal only to 1e-15 (s_1 / s_k)^2. One Newton-Schulz step squares that.
    u = times(u, _step(u), u)
    return Components(u, values, v) if tall is delta else Components(v, values, u)


def _small_core(delta: LowRank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q, C, P with ``delta = Q @ C @ P.T``, Q and P orthonormal and C no larger than the rank."""
    q, left = torch.linalg.qr(delta.left.double())
    p, right = torch.linalg.qr(delta.right.double().T)
    return q, finite(left @ right.T), p


def _svd_of_product(delta: LowRank, rank_of: RankRule) -> Components | None:
    q, core, p = _small_core(delta)
    u, values, vt = torch.linalg.svd(core, full_matrices=False)
    # Factors may cancel: then the product is their rounding, and its directions mean nothing.
    size = torch.linalg.matrix_norm(delta.left) * torch.linalg.matrix_norm(delta.right)
    k = rank_of(values) if delta.rank > 0 and values[0] > 1e-7 * size else 0
    return Components((q @ u[:, :k]).float(), values[:k], (p @ vt[:k].T).float()) if k else None


# --- the merge ----------------------------------------------------------------------------------------------------


def polar(a: torch.Tensor, tolerance: float) -> torch.Tensor:
    """The matrix with orthonormal columns nearest to ``a``, in place: ``a (a.T a)^(-1/2)``.

    Directions with a singular value below ``tolerance`` times the largest are dropped, which leaves a partial isometry.
    On a GPU, where products are fast and eigendecompositions are not, by :func:`newton_schulz` where that is enough.
    """
    # What 14 steps have brought to one was more than 1.5^-14 of the largest before: nothing is to be dropped.
    if a.is_cuda and tolerance < 1.5**-STEPS and (found := newton_schulz(a)) is not None:
        return a.copy_(found)
    squares, vectors = eigh(gram(a))
    keep = squares > max(tolerance, ROUNDING) ** 2 * squares[-1]
    half = vectors[:, keep] * squares[keep] ** -0.25
    del vectors
    root = half @ half.T  # float32 would magnify its rounding by one over the smallest singular value
    del half
    return times(a, root, a)


def newton_schulz(a: torch.Tensor) -> torch.Tensor | None:
    """The polar factor of ``a`` by matrix products alone, or None where the steps do not get there: ``a`` has a singular
    value below about a hundredth of its largest, as experts have that are nearly the same.

    Steps ``x (3 - x.T x) / 2`` in float32 bring the singular values to one. That they are there is checked in float64, whose
    product serves a last step, which squares the error left. Within 1e-5 of :func:`polar`'s other way (see the tests).

    >>> newton_schulz(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    tensor([[1., 0.],
            [0., 1.],
            [0., 0.]])
    >>> newton_schulz(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))  # no second direction
    """
    x = a / torch.linalg.matrix_norm(a)
    # The Frobenius norm of (x.T x)^4 bounds that of its largest eigenvalue from above: by 1.7 at most for 4096 columns.
    fourth = torch.linalg.matrix_power(x.T @ x, 4)
    x /= torch.linalg.matrix_norm(fourth) ** 0.125
    del fourth
    for _ in range(STEPS):
        x = x @ _step(x)
    rest = gram(x).tril_()
    rest += rest.tril(-1).T
    rest.diagonal().sub_(1.0)
    if not torch.linalg.matrix_norm(rest) < 1e-3:  # nor where it is no number
        return None
    step = rest.mul_(-0.5).float()
    step.diagonal().add_(1.0)
    return times(x, step, x)


def _step(x: torch.Tensor) -> torch.Tensor:
    """What Newton and Schulz multiply ``x`` by: ``(3 - x.T x) / 2``."""
    step = (x.T @ x).mul_(-0.5)
    step.diagonal().add_(1.5)
    return step


def orthogonalise(
    parts: list[Components | None], shares: Sequence[float], polar_tol: float, shape: Sequence[int]
) -> Orthogonal:
    """U_p and V_p, the polar factors of all left and all right vectors side by side; None is a delta of zero.

    Empties ``parts``, so that no vector is held twice.
    """
    found = [part for part in parts if part]
    ranks = tuple(len(part.values) if part else 0 for part in parts)
    parts.clear()
    if not found:
        m, n = shape
        return Orthogonal(
            torch.zeros(m, 0), torch.zeros(0, dtype=torch.float64), torch.zeros(n, 0), ranks, tuple(shares)
        )
    left = torch.cat([part.left for part in found], dim=1)
    right = torch.cat([part.right for part in found], dim=1)
    values = torch.cat([part.values for part in found])
    found.clear()
    return Orthogonal(polar(left, polar_tol), values, polar(right, polar_tol), ranks, tuple(shares))
