"""Files that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing; it appears under its name only when the block ends without an error.

    Raises:
        OSError: with ``path`` where it had no name, as that of a full disk.
    """
    # Beside the target, because a rename is atomic only within one file system. Not mkstemp: its files are private.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # The new name itself survives a power cut only once the directory is flushed, too.
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_bytes(path: Path, content: bytes) -> None:
    with whole_file(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """UTF-8, and line ends exactly as given on every system."""
    write_bytes(path, content.encode())


def copy(source: Path, path: Path) -> None:
    """The content of ``source``, byte for byte; links are followed, as the hub's cache is made of them."""
    with source.open("rb") as origin, whole_file(path) as stream:
        shutil.copyfileobj(origin, stream, 1 << 20)
