"""Models at a URL that fsspec understands, such as ``s3://``: small files are fetched, weights are read where they are.

A tensor's file is then a URL, and its bytes come in ranges: headers for a plan, and for a merge what it asks for, a few
megabytes at a time.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from threading import local
from typing import Any

from triune.checkpoint.index import TensorInfo, header_of
from triune.errors import CheckpointError

AHEAD = 8 << 20
"""Bytes of one request: a block of a merge is half a megabyte, and an object store takes some 50 ms to answer."""

HEADER = 1 << 17
"""Bytes of the first request for a header."""

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
PACKAGES |= {"http": "aiohttp", "https": "aiohttp"}
"""What fsspec needs besides itself."""


def is_url(text: str) -> bool:
    """
    >>> is_url("s3://bucket/model"), is_url("org/name")
    (True, False)
    """
    return "://" in text


def fetch_small(url: str, patterns: Sequence[str], cache: Path) -> Path:
    """The files of these patterns in a folder of the cache, whose name tells what the remote folder holds now.

    Raises:
        CheckpointError: there is no such folder, it cannot be read, or a driver is missing.
    """
    with _sentences(url):
        system, root = _open(url)
        files = {f["name"].rpartition("/")[2]: f for f in system.ls(root, detail=True) if f["type"] == "file"}
        if not files:
            raise FileNotFoundError(url)
        # Not what the list says: that of a web server has names alone.
        wanted = sorted(n for n in files if any(fnmatch(n, p) for p in (*patterns, "*.safetensors")))
        facts = [_facts(system.info(files[name]["name"])) for name in wanted]
        key = hashlib.sha256(f"{url} {facts}".encode()).hexdigest()[:32]
        folder = cache / "remote" / key / (url.rstrip("/").rpartition("/")[2] or "model")
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as made:
                inner = Path(made) / "model"
                inner.mkdir()
                for name in files:
                    if any(fnmatch(name, pattern) for pattern in patterns):
                        (inner / name).write_bytes(system.cat_file(f"{root.rstrip('/')}/{name}"))
                try:
                    inner.rename(folder)
                except OSError:
                    if not folder.exists():  # else another process was first
                        raise
    return folder


def fetch(url: str, names: Iterable[str], folder: Path) -> None:
    """Copy weight files to the others; each is whole or absent."""
    with _sentences(url):
        system, root = _open(url)
        for name in names:
            if not (folder / name).exists():
                part = folder / f".{name}.{secrets.token_hex(4)}.part"
                try:
                    system.get_file(f"{root.rstrip('/')}/{name}", str(part))
                    part.rename(folder / name)
                finally:
                    part.unlink(missing_ok=True)


def read_headers(url: str, names: Iterable[str]) -> dict[str, TensorInfo]:
    """The tensors of these weight files, whose ``file`` is a URL."""
    found: dict[str, TensorInfo] = {}
    for name in names:
        file = f"{url.rstrip('/')}/{name}"
        with _sentences(file):
            system, path = _open(file)
            with system.open(path, "rb", block_size=HEADER) as opened:
                infos = header_of(file, int(system.info(path)["size"]), opened.read)
        for info in infos:
            if info.name in found:
                raise CheckpointError(f"{url}: tensor {info.name} stands in two of its files. Remove one.")
            found[info.name] = info
    return found


def version(file: str) -> str:
    """What changes when the file does: its size, and its ETag or time."""
    with _sentences(file):
        system, path = _open(file)
        return _facts(system.info(path))


class Ahead(local):
    """Reads files in ranges of a few megabytes. Each thread has what it has read ahead for itself."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[int, memoryview]] = {}

    def read(self, file: str, start: int, into: memoryview, end: int) -> None:
        """Fill the buffer from that offset on; ``end`` is how far it makes sense to read ahead."""
        at, data = self.held.pop(file, (0, memoryview(b"")))
        stop = start + len(into)
        if not at <= start <= stop <= at + len(data):
            at, data = start, self._fetch(file, start, max(stop, min(start + AHEAD, end)))
        into[:] = data[start - at : stop - at]
        if stop < at + len(data):
            self.held[file] = at, data

    def _fetch(self, file: str, start: int, stop: int) -> memoryview:
        with _sentences(file):
            system, path = _open(file)
            data = system.cat_file(path, start=start, end=stop)
        if len(data) != stop - start:
            reason = "ends there" if len(data) < stop - start else "answers with more: its server knows no byte ranges"
            raise CheckpointError(
                f"{file}: of bytes {start} to {stop} it gave {len(data)}; it {reason}. Fetch the model first."
            )
        return memoryview(data)


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    return system, str(path)


def _facts(info: dict[str, Any]) -> str:
    # Without the address that a web server has sent us on to, which may be signed anew each time.
    return str(sorted((str(key), str(value)) for key, value in info.items() if key != "url"))


@contextmanager
def _sentences(url: str) -> Iterator[None]:
    protocol = url.partition("://")[0]
    try:
        yield
    except CheckpointError:
        raise
    except ImportError as error:
        package = PACKAGES.get(protocol)
        step = f"Run: pip install {package}" if package else f"{error}."
        raise CheckpointError(f"{url}: reading {protocol}:// needs a package that is not installed. {step}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{url}: there is no such folder or file. Check the address.") from None
    except Exception as error:  # every store has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"{url} cannot be read: {reason}. Check the address, the network and your credentials."
        ) from None
