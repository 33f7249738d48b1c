"""Statistics of whole tensors, gathered in blocks (see :class:`triune.methods._spec.Scan`).

Exact selection by magnitude needs no sort: the bits of a non-negative float32 order like an unsigned integer, so two
histograms, of the upper 16 and of the lower 15 bits, find the k-th largest of any number of entries in 256 KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from triune._lazy import torch
from triune.methods._spec import Scan, View, WholeModelScan

LOW_BITS = 15
LOW = (1 << LOW_BITS) - 1


def magnitude_bits(delta: torch.Tensor) -> torch.Tensor:
    """The bits of ``|delta|`` as int32, flat: they order as the magnitudes do."""
    return delta.reshape(-1).view(torch.int32) & 0x7FFFFFFF


@dataclass(frozen=True)
class Cut:
    """Splits entries ordered by falling magnitude, equal ones by flat index, after the first so many."""

    bits: int
    """Magnitude of the last entry before the cut, as bits."""
    index: int
    """Entries of exactly that magnitude stand before the cut if their flat index is below this."""

    def before(self, bits: torch.Tensor, start: int) -> torch.Tensor:
        """Which entries of a run stand before the cut: 1 or 0, as int32, which is several times faster than bool."""
        ahead = bits.clone().gt_(self.bits)
        end = max(0, self.index - start)
        ahead[:end] = bits[:end].clone().ge_(self.bits)
        return ahead


ALL = Cut(bits=-1, index=0)
NONE = Cut(bits=0x7FFFFFFF, index=0)


def _with_prefix(bits: torch.Tensor, prefix: int) -> torch.Tensor:
    """The entries whose upper bits are these."""
    if bits.device.type != "cpu":
        return bits[bits >> LOW_BITS == prefix]
    flat = bits.numpy()  # compares and selects on one core several times faster than torch does
    return torch.from_numpy(flat[flat >> LOW_BITS == prefix])


class _Search:
    """Looks for the cut after the ``count`` largest of a stream of entries."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.missing = count
        """How many of the entries with the prefix found so far are still wanted."""
        self.prefix = 0
        self.cut: Cut | None = NONE if count <= 0 else None

    def narrow(self, histogram: torch.Tensor) -> int:
        """The bin of the last wanted entry, of a histogram of the entries still in question; keeps what is missing."""
        from_top = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, self.missing))
        if place >= len(histogram):  # fewer entries than wanted: all of them
            self.cut = ALL
            return 0
        self.missing -= int(from_top[place] - histogram.flip(0)[place])
        return len(histogram) - 1 - place


class MagnitudeCuts(Scan):
    """For every expert the cuts after given numbers of its largest entries, in one tensor or in the whole model.

    Exactly the number asked for, unless ``keeps_ties``: then all entries of the threshold's magnitude.
    """

    keeps_ties = False

    def __init__(self, counts: Sequence[Sequence[int]]) -> None:
        self.counts = counts
        self.passes = 3
        self.searches = [[_Search(c) for c in row] for row in counts]
        self._seen = [[0] * len(row) for row in counts]
        self._clear(1 << 16)

    def _clear(self, bins: int) -> None:
        self.histograms = [[cast("torch.Tensor | int", 0) for _ in row] for row in self.searches]
        self.bins = bins

    def see(self, turn: int, deltas: torch.Tensor, view: View) -> None:
        for t, row in enumerate(self.searches):
            wanted = [(j, s) for j, s in enumerate(row) if s.cut is None]
            if not wanted:
                continue
            bits = magnitude_bits(deltas[t])
            for j, search in wanted:
                if turn == 0:
                    self._count(t, j, bits >> LOW_BITS)
                elif turn == 1:
                    self._count(t, j, _with_prefix(bits, search.prefix) & LOW)
                else:
                    self._find(search, bits, view.start, (t, j))

    def _count(self, t: int, j: int, values: torch.Tensor) -> None:
        self.histograms[t][j] = self.histograms[t][j] + torch.bincount(values, minlength=self.bins)

    def _find(self, search: _Search, bits: torch.Tensor, start: int, key: tuple[int, int]) -> None:
        t, j = key
        ties = bits.clone().eq_(search.prefix)
        count = int(ties.sum())
        if self._seen[t][j] + count >= search.missing:
            last = int(ties.nonzero()[search.missing - self._seen[t][j] - 1])
            search.cut = Cut(search.prefix, start + last + 1)
        self._seen[t][j] += count

    def close(self, turn: int) -> None:
        undecided = False
        for t, row in enumerate(self.searches):
            for j, search in enumerate(row):
                histogram = self.histograms[t][j]
                if search.cut is not None or turn == 2 or isinstance(histogram, int):
                    continue
                found = search.narrow(histogram.cpu())
                search.prefix = found if turn == 0 else (search.prefix << LOW_BITS) | found
                if turn == 1 and search.cut is None:
                    if self.keeps_ties or search.missing == int(histogram[found]):
                        search.cut = Cut(search.prefix - 1, 0)  # every entry of this magnitude is wanted
                    else:
                        undecided = True
        if turn == 0:
            self._clear(1 << LOW_BITS)
        if turn == 1 and not undecided:
            self.passes = 2

    def result(self) -> list[list[Cut]]:
        return [[s.cut or ALL for s in row] for row in self.searches]


@dataclass(frozen=True)
class GlobalTrim:
    """What TIES learns from the whole model: one threshold for each expert, and the sign that most of the mass has."""

    cuts: tuple[Cut, ...]
    majority: float


class GlobalTrimScan(MagnitudeCuts, WholeModelScan):
    """TIES's trim over the flattened model (official code): threshold passes, then one that votes on the majority sign.

    The official threshold is the ``D - floor(D * density)``-th smallest magnitude and entries equal to it are kept, so
    ``floor(D * density) + 1`` entries and all their ties survive.
    """

    keeps_ties = True  # "lowest index" means nothing across tensors

    def __init__(
        self,
        densities: Sequence[float],
        weight: Sequence[float],
        prepare: Callable[[torch.Tensor, View], torch.Tensor] | None = None,
    ) -> None:
        super().__init__([[1] for _ in densities])
        self.densities, self.weight, self.prepare = densities, weight, prepare
        self.votes = 0

    def see(self, turn: int, deltas: torch.Tensor, view: View) -> None:
        deltas = self.prepare(deltas, view) if self.prepare else deltas
        if turn < 2:
            super().see(turn, deltas, view)
        else:
            cuts = self.result().cuts
            weights = torch.tensor(self.weight, dtype=deltas.dtype, device=deltas.device)
            self.votes += int((trim(deltas, cuts).reshape(len(deltas), -1) * weights[:, None]).sum(0).sign().sum())

    def close(self, turn: int) -> None:
        if turn == 0:
            for (search,), (histogram,), density in zip(self.searches, self.histograms, self.densities, strict=True):
                total = 0 if isinstance(histogram, int) else int(histogram.sum())
                search.missing = min(int(total * density) + 1, total)
        super().close(turn)
        self.passes = 3

    def result(self) -> GlobalTrim:  # type: ignore[override]
        return GlobalTrim(tuple(row[0] for row in super().result()), 1.0 if self.votes > 0 else -1.0)

    def part(self) -> GlobalTrimScan:
        other = GlobalTrimScan(self.densities, self.weight, self.prepare)
        other.searches, other.bins = self.searches, self.bins
        return other

    def add(self, part: GlobalTrimScan) -> None:
        self.votes += part.votes
        for mine, theirs in zip(self.histograms, part.histograms, strict=True):
            mine[0] = mine[0] + (theirs[0] if isinstance(theirs[0], int) else theirs[0].cpu())


def trim(deltas: torch.Tensor, cuts: Sequence[Cut], view: View | None = None) -> torch.Tensor:
    """Zero what stands behind each expert's cut."""
    start = view.start if view else 0
    masks = [c.before(magnitude_bits(d), start).reshape(d.shape) for d, c in zip(deltas, cuts, strict=True)]
    return deltas * torch.stack(masks).to(deltas.dtype)


def magnitude_sums(deltas: torch.Tensor) -> torch.Tensor:
    """Each expert's sum of magnitudes, float64."""
    return deltas.abs().reshape(len(deltas), -1).sum(1, dtype=torch.float64).cpu()


class RescaleScan(Scan):
    """How much each expert's sum of magnitudes shrinks under a mask: mergekit's ``rescale``.

    ``[experts]`` factors, before / after; 1 where either sum is below 1e-7. Sums are float64.
    """

    def __init__(self, models: int, sparsify: Callable[[torch.Tensor, View], torch.Tensor]) -> None:
        self.sparsify = sparsify
        self.before = torch.zeros(models, dtype=torch.float64)
        self.after = torch.zeros(models, dtype=torch.float64)

    def see(self, turn: int, deltas: torch.Tensor, view: View) -> None:
        self.before += magnitude_sums(deltas)
        self.after += magnitude_sums(self.sparsify(deltas, view))

    def result(self) -> list[float]:
        usable = (self.before >= 1e-7) & (self.after >= 1e-7)
        return [float(x) for x in torch.where(usable, self.before / self.after, 1.0)]
