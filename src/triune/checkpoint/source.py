"""How to get one model's version of one tensor: from its own file, from the base plus an adapter, or both.

These records say where bytes are and nothing more, so they travel to any thread or machine; ``reader.py`` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from triune.checkpoint.index import TensorInfo


@dataclass(frozen=True)
class Factors:
    """A LoRA delta: ``scale * B @ A``, or its transpose for weights stored as ``[in, out]``.

    Embedding adapters fit too: their delta is ``scale * (B @ A).T`` with A ``[r, vocabulary]`` and B ``[hidden, r]``.
    """

    a: TensorInfo
    """[rank, in]"""
    b: TensorInfo
    """[out, rank]"""
    scale: float
    transposed: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        out, into = self.b.shape[0], self.a.shape[1]
        return (into, out) if self.transposed else (out, into)


@dataclass(frozen=True)
class Source:
    """One model's version of one tensor.

    ``dense`` None means the base's own tensor, so the delta is that of ``factors`` alone, or zero without them.
    """

    dense: TensorInfo | None = None
    factors: Factors | None = None
    rows: tuple[int, ...] | None = None
    """For vocabularies in another order: output row -> this model's row, -1 where the token is missing."""

    @property
    def is_base(self) -> bool:
        return self.dense is None and self.factors is None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All that has to be read for it."""
        dense = (self.dense,) if self.dense else ()
        return (*dense, self.factors.a, self.factors.b) if self.factors else dense
