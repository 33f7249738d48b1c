"""Where every output tensor will stand, decided from headers before any work, and writing it there.

Since each tensor has its place from the start, any worker can write any tensor at any time: no shard is buffered, and all
that a resumed run needs to know is which tensors are in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from triune.checkpoint.index import TensorInfo

DEFAULT_SHARD = 5_000_000_000
FLUSHED = 4 << 20
"""Bytes of a tensor from which on it is worth a system call to have it written at once."""


@dataclass(frozen=True)
class Shard:
    """One output file: its name, its header as bytes, and the tensors in it at their final offsets."""

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(t.nbytes for t in self.tensors)


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]], shard_bytes: int = DEFAULT_SHARD) -> list[Shard]:
    """Assign (name, dtype, shape) triples, in order, to shards of at most ``shard_bytes`` (a larger tensor gets its own).

    Example:
        >>> [s.name for s in lay_out([("a", "F32", (4,)), ("b", "F32", (4,))], shard_bytes=16)]
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    groups: list[list[TensorInfo]] = [[]]
    used = 0
    for name, dtype, shape in tensors:
        info = TensorInfo(name, dtype, shape, "", 0)
        if groups[-1] and used + info.nbytes > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(info)
        used += info.nbytes
    if len(groups) == 1:
        return [make_shard("model.safetensors", groups[0])]
    count = len(groups)
    return [make_shard(f"model-{i:05d}-of-{count:05d}.safetensors", g) for i, g in enumerate(groups, 1)]


def make_shard(name: str, tensors: Sequence[TensorInfo]) -> Shard:
    """A shard holding these tensors one after another."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for t in tensors:
        entries[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [end, end + t.nbytes]}
        end += t.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    header = struct.pack("<Q", len(text)) + text
    start, placed = len(header), []
    for t in tensors:
        placed.append(TensorInfo(t.name, t.dtype, t.shape, name, start))
        start += t.nbytes
    return Shard(name, header, tuple(placed))


def shard_index(shards: Sequence[Shard]) -> str | None:
    """The text of ``model.safetensors.index.json``, or None for a single file."""
    if len(shards) == 1:
        return None
    weight_map = {t.name: s.name for s in shards for t in s.tensors}
    total = sum(t.nbytes for s in shards for t in s.tensors)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes tensors in place into shards of a working folder; ``finish`` moves the whole shards to their final folder."""

    def __init__(self, folder: Path, shards: Sequence[Shard], target: Path) -> None:
        self.folder, self.target = folder, target
        self.shards = {s.name: s for s in shards}
        self._open: dict[str, int] = {}
        self._lock = Lock()

    def _descriptor(self, name: str) -> int:
        with self._lock:
            if name not in self._open:
                shard = self.shards[name]
                # A run that was stopped between two renames left this shard in its final place.
                path = self.target / name if (self.target / name).exists() else self.folder / name
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                self._open[name] = descriptor
                # After a power cut the size may be right and the header not.
                header = os.pread(descriptor, len(shard.header), 0)
                if os.fstat(descriptor).st_size != shard.nbytes or header != shard.header:
                    _write_all(descriptor, memoryview(shard.header), 0)
                    os.truncate(descriptor, shard.nbytes)
            return self._open[name]

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        """Write bytes of a tensor, ``at`` bytes from its start."""
        descriptor = self._descriptor(info.file)
        _write_all(descriptor, data, info.start + at)
        if at + len(data) == info.nbytes >= FLUSHED and hasattr(os, "posix_fadvise"):
            # Linux then starts to write the tensor to the disk, so that the flush at the end has little left to do. It
            # forgets pages that are there already; no other is dropped before it is.
            with suppress(OSError):
                os.posix_fadvise(descriptor, info.start, info.nbytes, os.POSIX_FADV_DONTNEED)

    def digest(self, info: TensorInfo) -> str:
        """SHA-256 of a tensor's bytes as they stand now."""
        digest, step = hashlib.sha256(), 1 << 22
        descriptor = self._descriptor(info.file)
        for at in range(0, info.nbytes, step):
            digest.update(os.pread(descriptor, min(step, info.nbytes - at), info.start + at))
        return digest.hexdigest()

    def finish(self) -> None:
        """Flush every shard to the disk, then rename it into the target folder."""
        for name in self.shards:
            os.fsync(self._descriptor(name))
        self.__exit__()
        for name in self.shards:
            if not (self.target / name).exists():
                os.replace(self.folder / name, self.target / name)
        if self.shards:
            sync_folder(self.target)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
