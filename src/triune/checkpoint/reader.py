"""Reads parts of tensors into float32, by position, into buffers that are used again.

``pread`` keeps the page cache out of the process (a memory map counts as resident memory) and lets any number of threads
share one open file. A file may also be a URL; see ``remote.py``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from threading import Lock

from triune._lazy import torch
from triune.checkpoint.index import TensorInfo
from triune.checkpoint.remote import Ahead, is_url
from triune.checkpoint.source import Factors
from triune.errors import CheckpointError
from triune.methods._lowrank import LowRank

TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors name."""
    dtype = getattr(torch, TORCH_DTYPES[name])
    assert isinstance(dtype, torch.dtype)
    return dtype


class Files(AbstractContextManager["Files"]):
    """Files opened once and read by position from any thread."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._lock = Lock()
        self._ahead = Ahead()

    def descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._open:
                self._open[file] = os.open(file, os.O_RDONLY)
            return self._open[file]

    def read(self, file: str, start: int, into: memoryview, end: int = 0) -> None:
        """Fill the buffer from that offset on; from a URL perhaps some more is read, up to ``end``, and kept."""
        if is_url(file):
            self._ahead.read(file, start, into, end)
            return
        descriptor, done = self.descriptor(file), 0
        while done < len(into):
            count = os.preadv(descriptor, [into[done:]], start + done)
            if count == 0:
                raise CheckpointError(f"{file} ends at byte {start + done}: it was cut off while it was being read.")
            done += count

    def advise(self, info: TensorInfo) -> None:
        """Tell the kernel that this tensor is wanted, so that it reads ahead while we compute."""
        if hasattr(os, "posix_fadvise") and not is_url(info.file):
            os.posix_fadvise(self.descriptor(info.file), info.start, info.nbytes, os.POSIX_FADV_WILLNEED)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()


class Reader:
    """One lane's view of the files: its own scratch buffer, and a hash of what it reads."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def raw(self, info: TensorInfo, start: int, count: int) -> memoryview:
        """``count`` bytes of the tensor from its byte ``start`` on, valid until the next read of this lane."""
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count, dtype=torch.uint8)
        view = memoryview(self._scratch.numpy().data)[:count]
        self.files.read(info.file, info.start + start, view, info.start + info.nbytes)
        return view

    def rows(
        self, info: TensorInfo, first: int, last: int, out: torch.Tensor, hasher: hashlib._Hash | None = None
    ) -> None:
        """Rows ``first`` to ``last`` of the tensor's matrix view, into a float32 ``[rows, columns]``."""
        columns = info.matrix[1]
        item = info.nbytes // max(info.entries, 1)
        count = (last - first) * columns * item
        view = self.raw(info, first * columns * item, count)
        if hasher is not None:
            hasher.update(view)
        out.copy_(self._scratch[:count].view(torch_dtype(info.dtype)).reshape(out.shape))

    def mapped_rows(
        self, info: TensorInfo, rows: tuple[int, ...], out: torch.Tensor, hasher: hashlib._Hash | None = None
    ) -> None:
        """The listed rows, in that order; a row of -1 is left as it is."""
        for at, row, count in runs(rows):
            self.rows(info, row, row + count, out[at : at + count], hasher)

    def whole(self, info: TensorInfo) -> torch.Tensor:
        """A whole tensor in float32; for small ones, such as the factors of an adapter."""
        out = torch.empty(info.matrix, dtype=torch.float32)
        self.rows(info, 0, info.matrix[0], out)
        self._scratch = torch.empty(0, dtype=torch.uint8)  # a factor can be far larger than a block
        return out.reshape(info.shape)

    def low_rank(self, factors: Factors) -> LowRank:
        """An adapter's delta as ``left @ right``, oriented like the tensor it belongs to."""
        a, b = self.whole(factors.a), self.whole(factors.b) * factors.scale
        return LowRank(a.T.contiguous(), b.T.contiguous()) if factors.transposed else LowRank(b, a)


def runs(rows: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Cut a list of rows into (place, first row, count) of consecutive ones; -1 is skipped.

    >>> list(runs((4, 5, -1, 0)))
    [(0, 4, 2), (3, 0, 1)]
    """
    starts = [i for i in range(len(rows)) if i == 0 or rows[i] < 0 or rows[i] != rows[i - 1] + 1 or rows[i - 1] < 0]
    for at, end in pairwise([*starts, len(rows)]):
        if rows[at] >= 0:
            yield at, rows[at], end - at
