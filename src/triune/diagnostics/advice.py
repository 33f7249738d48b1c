"""What to do about a diagnosis: rules, each with the number that set it off and where the rule comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from triune.diagnostics.records import Diagnosis, Tensor

CONFLICT, DUPLICATE, SHARED_SPACE, APART = 0.55, 0.9, 0.9, 0.3
HEAVY, UNEQUAL, FAR, ROUNDED, SPREAD = 0.15, 3.0, 0.3, 0.3, 0.8


@dataclass(frozen=True)
class Advice:
    """One sentence, and why."""

    rule: str
    sentence: str
    evidence: str
    """A paper, or a page of these docs."""


def advise(diagnosis: Diagnosis) -> list[Advice]:
    """All advice whose rule holds, in the order of :data:`RULES`."""
    return [advice for rule in RULES for advice in rule(diagnosis)]


def _matrices(d: Diagnosis) -> list[Tensor]:
    return [t for t in d.tensors if any(e.rank for e in t.experts)]


def _pair(d: Diagnosis, pair: tuple[int, int]) -> str:
    return " and ".join(d.header.experts[t] for t in pair)


def _conflict(d: Diagnosis) -> Iterator[Advice]:
    for pair in d.pairs:
        rate = d.pair_mean(d.tensors, pair, "conflict") or 0.0
        if rate >= CONFLICT:
            yield Advice(
                "sign conflict",
                f"{_pair(d, pair)} pull in opposite directions in {rate:.0%} of the entries that both change (chance: 50%). "
                "Try ties or dare_ties, which let one sign win each entry, or give one of them less weight.",
                "TIES-Merging, arXiv 2306.01708, section 3",
            )


def _duplicates(d: Diagnosis) -> Iterator[Advice]:
    for pair in d.pairs:
        cosine = d.pair_mean(d.tensors, pair, "cosine") or 0.0
        if cosine >= DUPLICATE:
            yield Advice(
                "near duplicates",
                f"{_pair(d, pair)} are nearly one expert (cosine {cosine:.2f}): a sum counts it twice, and TSVM's rotation "
                "of nearly equal vectors follows noise. Drop one of them, or use linear.",
                "`triune methods tsvm`, polar_tol",
            )


def _shared_space(d: Diagnosis) -> Iterator[Advice]:
    overlaps = {p: {s: d.pair_mean(_matrices(d), p, f"{s}_overlap") for s in ("left", "right")} for p in d.pairs}
    for side, other in (("left", "right"), ("right", "left")):
        found = {
            pair: (same, apart)
            for pair, sides in overlaps.items()
            if (same := sides[side]) is not None and (apart := sides[other]) is not None
            if same >= SHARED_SPACE and apart <= APART
        }
        if found:
            shared, separate = map(_range, zip(*found.values(), strict=True))
            pairs = "; ".join(_pair(d, pair) for pair in found)
            yield Advice(
                "shared space",
                f"{pairs} share their {side} singular space (overlap {shared}) but not the {other} one ({separate}), as "
                "adapters do that started from one seed. TSVM and R-TSVM turn such directions away; task_arithmetic adds "
                "them up. Train with a different seed for each expert.",
                "docs/lab-log.md, 2026-11-24",
            )


def _range(values: Sequence[float]) -> str:
    """
    >>> _range([0.981, 0.94]), _range([0.981])
    ('0.94 to 0.98', '0.98')
    """
    return " to ".join(dict.fromkeys(f"{pick(values):.2f}" for pick in (min, max)))


def _outliers(d: Diagnosis) -> Iterator[Advice]:
    for t, name in enumerate(d.header.experts):
        mass = d.mean(d.tensors, t, "outlier_mass") or 0.0
        if mass >= HEAVY:
            yield Advice(
                "heavy tails",
                f"{name} puts {mass:.0%} of its change into outliers. Try r_tsvm, which damps them, or breadcrumbs, which "
                "drops them.",
                "Mix Data or Merge Models?, arXiv 2502.06876; Model Breadcrumbs, arXiv 2312.06795",
            )


def _unequal(d: Diagnosis) -> Iterator[Advice]:
    sizes = [sum(t.experts[i].norm ** 2 for t in d.tensors) ** 0.5 for i in range(len(d.header.experts))]
    changed = [s for s in sizes if s]
    if changed and max(changed) >= UNEQUAL * min(changed):
        loud, quiet = (d.header.experts[sizes.index(pick(changed))] for pick in (max, min))
        yield Advice(
            "unequal experts",
            f"{loud} changed the base {max(changed) / min(changed):.1f} times as much as {quiet} and will drown it at equal "
            "weights. Give it less weight.",
            "Editing Models with Task Arithmetic, arXiv 2212.04089, section 2",
        )


def _far(d: Diagnosis) -> Iterator[Advice]:
    for t, name in enumerate(d.header.experts):
        size = d.mean(d.tensors, t, "relative") or 0.0
        if size >= FAR:
            yield Advice(
                "far from the base",
                f"{name} changed the base by {size:.0%} of its norm. Merging assumes experts in one basin around the base, "
                "and dropping at random (DARE) fails for large deltas. Lower the weights and check the merge.",
                "Model soups, arXiv 2203.05482; DARE, arXiv 2311.03099, section 4",
            )


def _rounded(d: Diagnosis) -> Iterator[Advice]:
    for t, name in enumerate(d.header.experts):
        zeros = d.mean(d.tensors, t, "exact_zero") or 0.0
        if zeros >= ROUNDED:
            yield Advice(
                "lost to rounding",
                f"{zeros:.0%} of {name}'s entries equal the base's to the last bit: its steps were smaller than the spacing "
                "of its dtype. Merge the adapter itself if there is one, or save in float32.",
                "bfloat16 has 8 bits of precision",
            )


def _spread(d: Diagnosis) -> Iterator[Advice]:
    kept = [e.energy_kept for t in _matrices(d) for e in t.experts if e.energy_kept is not None]
    if kept and fmean(kept) < SPREAD:
        yield Advice(
            "spread spectrum",
            f"TSVM's share of the rank holds only {fmean(kept):.0%} of the experts' energy: their rank is not low, and an "
            "entry-wise method loses less.",
            "TSV, arXiv 2412.00081, section 3.1",
        )


RULES: tuple[Callable[[Diagnosis], Iterator[Advice]], ...] = (
    _conflict,
    _duplicates,
    _shared_space,
    _outliers,
    _unequal,
    _far,
    _rounded,
    _spread,
)
