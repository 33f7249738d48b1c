"""What a merge of one tensor computes, as counts: entries passed over, and floating-point operations by kind.

Of an m x n matrix, r = min(m, n), l = max(m, n). An eigendecomposition of size r counts as 9 r^3, a QR with its factor Q as
4 m R^2, an SVD of size R as 22 R^3 (Golub & Van Loan). A symmetric product is made in four column blocks of its lower
triangle, which is 5/8 of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Cost = Counter[str]
"""``passes`` in entries; ``gemm64``, ``gemm32`` and ``eigh`` (with QR and SVD) in operations."""

PASSES = {
    "linear": 5,
    "rewarded_soup": 6,
    "task_arithmetic": 4,
    "model_stock": 12,
    "ties": 52,
    "dare_linear": 30,
    "dare_ties": 38,
    "della_linear": 146,
    "della": 153,
    "breadcrumbs": 35,
    "breadcrumbs_ties": 43,
}
"""Of each method with its scans (``python -m benchmarks.passes``): the time for an entry of each expert over that of
``x * 0.5``, on one core."""
READ = 4
"""Passes over each input: to float32, minus the base, a norm, the sum."""


def elementwise(method: str, experts: int, entries: int) -> Cost:
    """
    >>> elementwise("linear", 3, 100)  # (5 + 4) * 3 * 100
    Counter({'passes': 2700})
    """
    return Counter(passes=(PASSES.get(method, READ) + READ) * experts * entries)


def spectral(experts: int, shape: Sequence[int], damped_passes: int = 0) -> Cost:
    """TSVM on dense deltas, with the full rank share k = r // T of each expert: an estimate from above.

    >>> spectral(1, (2, 4))["eigh"]  # 9 * 2^3 for the delta, and twice for the polar factors
    216
    """
    m, n = shape
    small, large = min(m, n), max(m, n)
    k = small // experts
    cost = Counter(passes=(READ + damped_passes) * experts * m * n, eigh=experts * 9 * small**3)
    cost["gemm64"] += experts * (5 * 2 * large * small**2 // 8)  # Gram matrices
    cost["gemm64"] += experts * 2 * large * small * k  # the other side's vectors
    cost["gemm32"] += experts * 4 * large * k**2  # made orthonormal
    return cost + polar_factors(k * experts, shape) + Counter(gemm32=2 * m * n * k * experts)


def polar_factors(rank: int, shape: Sequence[int]) -> Cost:
    """Those of U ``[m, rank]`` and V ``[n, rank]``."""
    rows = sum(shape)
    gram, root = 5 * 2 * rows * rank**2 // 8, 4 * rank**3
    return Counter(gemm64=gram + root + 2 * rows * rank**2, eigh=2 * 9 * rank**3)


def factored(ranks: Sequence[int], shape: Sequence[int], dense: bool = True) -> Cost:
    """TSVM on adapters; ``dense``: the merged delta is multiplied out."""
    rows, total = sum(shape), sum(ranks)
    cost = Counter(eigh=sum(4 * rows * r**2 + 22 * r**3 for r in ranks))
    product = 2 * shape[0] * shape[1] * total if dense else 0
    return cost + polar_factors(total, shape) + Counter(gemm32=product)
