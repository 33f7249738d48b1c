"""Statistics of whole tensors, gathered in blocks (see :class:`triune.methods._spec.Scan`).

Exact selection by magnitude needs no sort, and mostly a single pass (see ``_sampled_cuts.py``). Where that does not do, two
histograms find the k-th largest of any number of entries in 256 KiB, of the upper 16 and of the lower 15 bits: the bits of a
non-negative float32 order like an unsigned integer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from triune._lazy import torch
from triune.methods._spec import Scan, View, WholeModelScan

if TYPE_CHECKING:
    import numpy as np

LOW_BITS = 15
LOW = (1 << LOW_BITS) - 1
FEW = 1 << 18
"""Entries that are ordered one by one (12 bytes each) instead of counted by their lower bits, which takes a pass more."""
REMEMBERED = 8 << 20
"""Bytes for each expert to keep a tensor's random mask in, a bit an entry, so that it is not drawn again."""


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
    more: int = 0
    """So many of them besides, from ``index`` on. They must all lie in one of the runs that :meth:`keep` is asked for."""

    def keep(self, delta: torch.Tensor, start: int) -> torch.Tensor:
        """A run of entries, with zero in place of those behind the cut."""
        flat = delta.reshape(-1)
        with_ties = min(max(0, self.index - start), len(flat))
        if self.more and start <= self.index < start + len(flat):
            ties = (magnitude_bits(flat[with_ties:]) == self.bits).nonzero()[: self.more]
            with_ties += int(ties[-1]) + 1 if len(ties) else 0
        if with_ties == 0:
            return _above(flat, self.bits).reshape(delta.shape)
        parts = (_above(flat[:with_ties], self.bits - 1), _above(flat[with_ties:], self.bits))
        return torch.cat(parts).reshape(delta.shape)


ALL = Cut(bits=-1, index=0)
NONE = Cut(bits=0x7FFFFFFF, index=0)


def _above(flat: torch.Tensor, bits: int) -> torch.Tensor:
    """The entries whose magnitude has higher bits than these; zero for the others."""
    if bits < 0:
        return flat
    if bits >= NONE.bits:
        return torch.zeros_like(flat)
    # Hard shrinkage is this very function, and compares and selects in one vectorised pass.
    return torch.nn.functional.hardshrink(flat, struct.unpack("f", struct.pack("I", bits))[0])


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
        self.found: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] | None = None
        """Bits and flat indices of the entries with the prefix, where they are few."""

    def gather(self, bits: torch.Tensor, start: int) -> None:
        """Keep the entries of a run that have the prefix."""
        import numpy as np

        assert self.found is not None
        flat = bits.cpu().numpy()
        places = np.flatnonzero(flat >> LOW_BITS == self.prefix)
        self.found.append((flat[places], places + start))

    def choose(self) -> None:
        """Order what was gathered."""
        import numpy as np

        assert self.found is not None
        bits, places = (np.concatenate(parts) for parts in zip(*self.found, strict=True))
        self.cut = cut_among(bits, places, self.missing)
        self.found = None

    def narrow(self, histogram: torch.Tensor) -> int:
        """The bin of the last wanted entry, of a histogram of the entries still in question; keeps what is missing."""
        from_top = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, self.missing))
        if place >= len(histogram):  # fewer entries than wanted: all of them
            self.cut = ALL
            return 0
        self.missing -= int(from_top[place] - histogram.flip(0)[place])
        return len(histogram) - 1 - place


def cut_among(bits: np.ndarray[Any, Any], places: np.ndarray[Any, Any], count: int) -> Cut:
    """The cut after the ``count`` largest of some entries, given their magnitudes' bits and, in order, flat indices."""
    import numpy as np

    last = int(np.partition(bits, len(bits) - count)[len(bits) - count])
    equal = np.flatnonzero(bits == last)
    wanted = count - int(np.count_nonzero(bits > last))
    return Cut(last - 1, 0) if wanted == len(equal) else Cut(last, int(places[equal[wanted - 1]]) + 1)


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
                elif search.found is not None:
                    search.gather(bits, view.start)
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
                if search.found:
                    search.choose()
                histogram = self.histograms[t][j]
                if search.cut is not None or turn == 2 or isinstance(histogram, int):
                    continue
                found = search.narrow(histogram.cpu())
                search.prefix = found if turn == 0 else (search.prefix << LOW_BITS) | found
                if turn == 0 and not self.keeps_ties and int(histogram[found]) <= FEW:
                    search.found = []
                if turn == 1 and search.cut is None:
                    if self.keeps_ties or search.missing == int(histogram[found]):
                        search.cut = Cut(search.prefix - 1, 0)  # every entry of this magnitude is wanted
                    else:
                        undecided = True
        if turn == 0:
            self._clear(1 << LOW_BITS)
        if turn == 1 and not undecided:
            self.passes -= 1

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
    return torch.stack([cut.keep(delta, start) for delta, cut in zip(deltas, cuts, strict=True)])


def row_sums(stack: torch.Tensor) -> torch.Tensor:
    """Each expert's sum, float64: torch adds up a row pairwise, which loses nothing that matters in float32."""
    rows = stack.reshape(len(stack), -1, stack.shape[-1] if stack.dim() > 1 else 1)
    sums = rows.sum(2).sum(1, dtype=torch.float64).cpu()
    return sums if bool(sums.isfinite().all()) else rows.sum((1, 2), dtype=torch.float64).cpu()


@dataclass(frozen=True)
class Survivors:
    """What a pass over a tensor's random mask has learned."""

    factors: Sequence[float]
    """By expert: how much its sum of magnitudes shrinks, before / after."""
    masks: Mapping[int, np.ndarray[Any, Any]] = field(default_factory=dict, repr=False)
    """By a block's first index, the mask, a bit an entry; empty where it would take too much memory."""

    def mask(self, deltas: torch.Tensor, start: int) -> torch.Tensor | None:
        """The mask of the block that starts there, if it is remembered: ``[experts, ...]`` of 0 and 1."""
        import numpy as np

        packed = self.masks.get(start)
        if packed is None:
            return None
        bits = np.unpackbits(packed, count=deltas.numel())
        return torch.from_numpy(bits).reshape(deltas.shape).to(deltas.dtype)


class RescaleScan(Scan):
    """How much each expert's sum of magnitudes shrinks under a mask: mergekit's ``rescale``.

    Factors, before / after; 1 where either sum is below 1e-7.

    Args:
        models: number of experts.
        entries: of the tensor.
        mask: ``[experts, ...]`` of 0 and 1 for a block.
    """

    def __init__(self, models: int, entries: int, mask: Callable[[torch.Tensor, View], torch.Tensor]) -> None:
        self.mask = mask
        self.remembers = entries <= 8 * REMEMBERED
        self.masks: dict[int, np.ndarray[Any, Any]] = {}
        self.before = torch.zeros(models, dtype=torch.float64)
        self.after = torch.zeros(models, dtype=torch.float64)

    def see(self, turn: int, deltas: torch.Tensor, view: View) -> None:
        import numpy as np

        mask = self.mask(deltas, view)
        magnitudes = deltas.abs()
        self.before += row_sums(magnitudes)
        self.after += row_sums(magnitudes.mul_(mask))
        if self.remembers and deltas.device.type == "cpu":
            self.masks[view.start] = np.packbits(mask.numpy() != 0)

    def result(self) -> Survivors:
        usable = (self.before >= 1e-7) & (self.after >= 1e-7)
        factors = [float(x) for x in torch.where(usable, self.before / self.after, 1.0)]
        return Survivors(factors, self.masks)
