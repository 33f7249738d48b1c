"""A delta kept as the product of two thin matrices, which is what a LoRA adapter is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LowRank:
    """``left @ right``: ``[m, R] @ [R, n]``, float32. The LoRA scale is already inside one of them."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> torch.Tensor:
        return self.left @ self.right

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows ``first`` to ``last`` of the product, without the others."""
        return self.left[first:last] @ self.right
