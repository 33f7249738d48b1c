"""The schema of a diagnosis, and its file: JSON Lines, a header and then one line for each tensor.

Shares lie in [0, 1]. What could not be measured (a spectrum of a vector, a tail of ten entries) is null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from triune.errors import UserError

SCHEMA = "triune-diagnosis/1"


@dataclass(frozen=True)
class Header:
    """What was looked at."""

    base: str
    experts: tuple[str, ...]
    references: tuple[str, ...]
    effects: tuple[str, ...]
    """Methods whose effect was measured, with the settings of the recipe or typical ones."""
    fingerprint: str
    """Changes with the inputs and the settings."""
    tensors: int
    version: str
    schema: str = SCHEMA


@dataclass(frozen=True)
class Expert:
    """One expert's delta in one tensor."""

    norm: float
    relative: float | None
    """Norm over the base's."""
    outliers: float
    """Share of entries above mean + 3 deviations, as R-TSVM draws the line."""
    outlier_mass: float
    """Share of the sum of magnitudes that they hold."""
    kurtosis: float
    hill: float | None
    hoyer: float
    near_zero: float
    exact_zero: float
    histogram: list[int]
    """Entries by quarter octaves of magnitude over root mean square, from 2^-10 to 2^8."""
    damped: list[int]
    """The same with outliers cut off."""
    rank: int | None = None
    """Numerical rank."""
    effective_rank: float | None = None
    stable_rank: float | None = None
    energy_kept: float | None = None
    """Share of energy in the first r / T triplets."""
    spectral_hill: float | None = None
    knots: list[tuple[int, float]] | None = None
    """(Index from 1, s / s_1)."""
    ranks: dict[str, int] = field(default_factory=dict)
    """Triplets that a method keeps."""


@dataclass(frozen=True)
class Pair:
    """Two experts in one tensor."""

    first: int
    second: int
    conflict: float
    cancelled: float
    cosine: float
    left_overlap: float | None = None
    right_overlap: float | None = None


@dataclass(frozen=True)
class Effect:
    """What a method makes of one expert's delta, see :func:`triune.diagnostics.entries.change`."""

    kept: float
    flipped: float
    dropped: float


@dataclass(frozen=True)
class Tensor:
    """Everything about one tensor."""

    index: int
    name: str
    shape: tuple[int, ...]
    base_norm: float
    experts: tuple[Expert, ...]
    pairs: tuple[Pair, ...]
    interference: float | None
    """Singular task interference."""
    effects: dict[str, tuple[Effect, ...]]

    @property
    def entries(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def layer(self) -> int | None:
        """The first number in the name: ``model.layers.7.mlp.up_proj.weight`` stands in layer 7."""
        return next((int(part) for part in self.name.split(".") if part.isdigit()), None)

    @property
    def projection(self) -> str:
        """The part of the name before ``weight``: q_proj, up_proj, input_layernorm."""
        parts = [p for p in re.sub(r"\.(weight|bias)$", "", self.name).split(".") if not p.isdigit()]
        return parts[-1]


@dataclass(frozen=True)
class Diagnosis:
    """A whole model."""

    header: Header
    tensors: tuple[Tensor, ...]

    def mean(self, tensors: Iterable[Tensor], expert: int, measure: str) -> float | None:
        """Mean of one of :class:`Expert`'s measures over tensors, each weighted by its entries."""
        return _mean((t.entries, getattr(t.experts[expert], measure)) for t in tensors)

    def pair_mean(self, tensors: Iterable[Tensor], pair: tuple[int, int], measure: str) -> float | None:
        """The same for a pair."""
        found = ((t, p) for t in tensors for p in t.pairs if (p.first, p.second) == pair)
        return _mean((t.entries, getattr(p, measure)) for t, p in found)

    def effect(self, method: str, expert: int) -> Effect | None:
        """A method's effect on an expert in the whole model: ``kept`` weighted by the squared norm of its deltas."""
        found = [(t, t.effects[method][expert]) for t in self.tensors if method in t.effects]
        kept = _mean((t.experts[expert].norm ** 2, e.kept) for t, e in found)
        flipped, dropped = (_mean((t.entries, getattr(e, k)) for t, e in found) for k in ("flipped", "dropped"))
        return Effect(kept, flipped, dropped) if None not in (kept, flipped, dropped) else None  # type: ignore[arg-type]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        count = len(self.header.experts)
        return [(i, j) for i in range(count) for j in range(i + 1, count)]

    def by(self, key: str) -> dict[Any, list[Tensor]]:
        """Tensors grouped by ``layer`` or ``projection``, in the model's order; those without layer are left out."""
        groups: dict[Any, list[Tensor]] = {}
        for tensor in self.tensors:
            place = getattr(tensor, key)
            if place is not None:
                groups.setdefault(place, []).append(tensor)
        return groups


def _mean(weighted: Iterable[tuple[float, float | None]]) -> float | None:
    known = [(w, x) for w, x in weighted if x is not None]
    total = sum(w for w, _ in known)
    return sum(w * x for w, x in known) / total if total else None


# --- the file -----------------------------------------------------------------------------------------------------


def line_of(record: Header | Tensor) -> str:
    return json.dumps(asdict(record), separators=(",", ":"), allow_nan=False) + "\n"


def tensor_of(tree: Mapping[str, Any]) -> Tensor:
    """A tensor's record from its line."""
    return Tensor(
        **{
            **tree,
            "shape": tuple(tree["shape"]),
            "experts": tuple(
                Expert(**{**e, "knots": [(i, s) for i, s in e["knots"]] if e["knots"] else None})
                for e in tree["experts"]
            ),
            "pairs": tuple(Pair(**p) for p in tree["pairs"]),
            "effects": {m: tuple(Effect(**e) for e in told) for m, told in tree["effects"].items()},
        }
    )


def header_of(tree: Mapping[str, Any]) -> Header:
    lists = ("experts", "references", "effects")
    fields: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in tree.items()}
    return Header(**fields)


def read_diagnosis(path: Path) -> Diagnosis:
    """What ``triune diagnose`` wrote.

    Raises:
        UserError: the file is missing, damaged, or of another schema.
    """
    try:
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        header = json.loads(first)
        if header.get("schema") != SCHEMA:
            raise UserError(f"{path} is not a diagnosis of schema {SCHEMA}. Run `triune diagnose` again.")
        return Diagnosis(header_of(header), tuple(tensor_of(json.loads(line)) for line in rest))
    except OSError as error:
        raise UserError(f"{path}: no diagnosis can be read there ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a diagnosis, or is damaged. Run `triune diagnose` again.") from None


def effects_table(diagnosis: Diagnosis) -> Sequence[tuple[str, tuple[Effect | None, ...]]]:
    """Each method with its effect on each expert."""
    experts = range(len(diagnosis.header.experts))
    return [(m, tuple(diagnosis.effect(m, t) for t in experts)) for m in diagnosis.header.effects]
