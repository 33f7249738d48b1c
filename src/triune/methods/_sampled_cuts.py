"""Exact selection by magnitude that mostly needs a single pass, because a sample tells where to look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from triune._lazy import torch
from triune.methods._scan import ALL, Cut, MagnitudeCuts, magnitude_bits
from triune.methods._spec import View

if TYPE_CHECKING:
    import numpy as np

SAMPLE = 1 << 20
"""Entries that are looked at first, about; for tensors that are no larger, histograms are as fast."""
THINNEST = 64
"""A sample holds one entry in so many at least, in whole rows."""
KEPT = 1 << 18
"""Magnitudes that a window may list (8 bytes each, and twice that for a moment)."""
SPREADS = (0.2, 0.05, 0.0)
"""How far off a sampled share p may be because rows differ: this times p (1 - p), besides four standard errors."""
RUN = 1 << 18
"""Entries shown at a time (``BLOCK`` of ``engine/job.py``), to foresee how long lists become; others do no harm."""
HIGHEST = 0x7FFFFFFF


@dataclass
class _Window:
    """Counts the entries above a range of magnitudes, and lists those in it.

    Deltas between 16-bit models have few distinct magnitudes, each shared by up to a percent of a tensor. So a list holds
    each magnitude once for each run of entries, with its number.
    """

    low: int
    high: int
    """Bits of magnitudes; both ends belong to the window."""
    above: int = 0
    held: int = 0
    runs: list[tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = field(default_factory=list)
    """First flat index, magnitudes' bits in ascending order, and how often each occurs."""

    def see(self, bits: torch.Tensor, start: int) -> None:
        import numpy as np

        if self.held > KEPT:
            return
        above, found = _split(bits, self.low, self.high)
        found, times = np.unique(found, return_counts=True)
        self.above += above
        self.held += len(found)
        self.runs.append((start, found, times.astype(np.int32)))
        if self.held > KEPT:
            self.runs.clear()

    def cut(self, count: int) -> Cut | None:
        """The cut after the ``count`` largest entries of all; None if it lies outside the window."""
        import numpy as np

        missing = count - self.above
        if self.held > KEPT or missing <= 0:
            return None
        bits, inverse = np.unique(np.concatenate([b for _, b, _ in self.runs]), return_inverse=True)
        numbers = np.bincount(inverse, weights=np.concatenate([n for _, _, n in self.runs]))
        down_to = numbers[::-1].cumsum()[::-1]  # exact: floats count to 2^53
        if not len(bits) or missing > down_to[0]:
            return None
        place = int(np.flatnonzero(down_to >= missing)[-1])
        last, missing = int(bits[place]), missing - int(down_to[place] - numbers[place])
        if last == 0 or missing == numbers[place]:  # zeros may be kept or not: they stay zeros
            return Cut(last - 1, 0)
        for start, found, times in self.runs:
            here = int(times[found == last].sum())
            if missing <= here:
                return Cut(last, start, missing)
            missing -= here
        raise AssertionError("the runs hold that many")


def _split(bits: torch.Tensor, low: int, high: int) -> tuple[int, np.ndarray[Any, Any]]:
    """How many are above, and those that are between."""
    import numpy as np

    if bits.device.type != "cpu":
        return int((bits > high).sum()), bits[(bits >= low) & (bits <= high)].cpu().numpy()
    flat = bits.numpy()
    inside = (flat - np.int32(low)).view(np.uint32) <= np.uint32(high - low)  # one comparison for two
    return int(np.count_nonzero(flat > high)), flat[np.flatnonzero(inside)]  # twice as fast as by the mask itself


class SampledCuts(MagnitudeCuts):
    """As :class:`MagnitudeCuts`, for one tensor, and in one pass instead of two or three where that is possible.

    A sample of rows, at most a million entries, says between which magnitudes each cut should lie. One pass counts what is
    above and lists what is between. The cut is exact: where the window misses it, the passes of :class:`MagnitudeCuts`
    follow. They come at once where a window would list too much, as in tensors of a hundred million distinct numbers.
    So they do in a tensor that is no larger than the sample.

    Args:
        counts: by expert, after how many of the largest entries to cut.
        entries: of the tensor.
    """

    def __init__(self, counts: Sequence[Sequence[int]], entries: int) -> None:
        super().__init__(counts)
        self.entries, self.thin = entries, max(-(-entries // SAMPLE), THINNEST)
        for search in (s for row in self.searches for s in row):
            if search.count >= entries:
                search.cut = ALL
        self.samples: list[list[np.ndarray[Any, Any]]] = [[] for _ in counts]
        self.windows: list[list[_Window]] = []
        self.aimed = 2 if entries > SAMPLE else 0
        """Passes before those of :class:`MagnitudeCuts`: the sample, and the windows if there are any."""
        self.passes = (self.aimed or 3) if self._open() else 0

    def _open(self) -> list[int]:
        """Experts that still lack a cut."""
        return [t for t, row in enumerate(self.searches) if any(s.cut is None for s in row)]

    def one_of(self, turn: int) -> int:
        return self.thin if turn == 0 < self.aimed else 1

    def see(self, turn: int, deltas: torch.Tensor, view: View) -> None:
        if turn >= self.aimed:
            super().see(turn - self.aimed, deltas, view)
            return
        for t in self._open():
            bits = magnitude_bits(deltas[t])
            if turn == 0:
                self.samples[t].append(bits[:: max(1, len(bits) // SAMPLE)].cpu().numpy())  # a row may be that long
                continue
            for search, window in zip(self.searches[t], self.windows[t], strict=True):
                if search.cut is None:
                    window.see(bits, view.start)

    def close(self, turn: int) -> None:
        if turn >= self.aimed:
            super().close(turn - self.aimed)
            return
        if turn == 0:
            self._use_samples()
        else:
            for t in self._open():
                for search, window in zip(self.searches[t], self.windows[t], strict=True):
                    search.cut = search.cut or window.cut(search.count)
            self.windows.clear()
        if not self._open():
            self.passes = turn + 1
        elif turn + 1 == self.aimed:
            self.passes = self.aimed + 3

    def _use_samples(self) -> None:
        import numpy as np

        windows: list[list[_Window | None]] = [[] for _ in self.searches]
        for t in self._open():
            bits = np.concatenate(self.samples[t])
            self.samples[t].clear()
            windows[t] = [self._aim(bits, search.count) for search in self.searches[t]]
        self.windows = [[w for w in row if w] for row in windows]
        if any(w is None for row in windows for w in row):
            self.aimed = 1  # the histograms find all of them, in a pass less

    def _aim(self, sample: np.ndarray[Any, Any], count: int) -> _Window | None:
        """Where the cut should lie: the widest window that promises to list no more than it may, if there is one."""
        import numpy as np

        size, share = len(sample), min(max(count / self.entries, 0.0), 1.0)
        deviation, middle = size * share * (1 - share), size * (1 - share)
        ordered, lowest = sample[:0], 0
        for part in SPREADS:
            spread = deviation * part + 4 * math.sqrt(deviation) + 1
            first, last = math.ceil(middle - spread), math.floor(middle + spread)
            ends = [max(first, 0), min(last, size - 1)]
            if not len(ordered):  # of the widest window, the others lie in it
                ordered, lowest = np.sort(np.partition(sample, ends)[ends[0] : ends[1] + 1]), ends[0]
            inside = ordered[ends[0] - lowest : ends[1] - lowest + 1]
            # Of numbers that repeat, each run lists at most the distinct ones; of others, all.
            distinct = 1 + int(np.count_nonzero(inside[1:] != inside[:-1]))
            listed = min(distinct * self.entries / RUN, len(inside) * self.entries / size)
            if listed <= KEPT * (0.5 if part else 0.9):  # the widest may hold much more than the sample shows
                return _Window(int(inside[0]) if first >= 0 else 0, int(inside[-1]) if last < size else HIGHEST)
        return None
