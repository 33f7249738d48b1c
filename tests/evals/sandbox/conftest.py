"""The sandbox as each way builds it, and what its tests look at from outside."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from triune.errors import UserError
from triune.evals.sandbox import WAYS, Isolation, Outcome, Way, isolation, run_many

PLAIN = "/usr/bin/python3"
"""For users who cannot read ours, as where root keeps it at home."""


@dataclass(frozen=True)
class Box:
    """The sandbox, built in one of the ways."""

    python: str
    isolation: Isolation

    @property
    def way(self) -> Way:
        return self.isolation.way

    @property
    def settings(self) -> dict[str, Any]:
        """To call the sandbox in this way."""
        return {"ways": (self.way,), "python": self.python, "need": self.isolation.walls}

    def many(self, programs: Sequence[str], seconds: float = 20.0, **more: Any) -> list[Outcome]:
        return run_many(programs, seconds=seconds, **self.settings, **more)

    def __call__(self, program: str, **more: Any) -> Outcome:
        return self.many([program], **more)[0]


def build(way: Way) -> Box:
    if not sys.platform.startswith("linux"):
        pytest.skip("the sandbox is for Linux")
    hidden = any(not folder.stat().st_mode & 0o001 for folder in Path(sys.base_prefix).parents)
    python = PLAIN if hidden and way != "namespaces" else sys.executable
    try:
        return Box(python, isolation(python, (way,)))
    except (UserError, FileNotFoundError) as error:
        pytest.skip(f"{way} cannot be had on this machine: {error}")


@pytest.fixture(params=WAYS)
def box(request: pytest.FixtureRequest) -> Box:
    """In every way that this machine allows."""
    return build(request.param)


@pytest.fixture
def best() -> Box:
    """With all walls."""
    return build("namespaces")


@dataclass(frozen=True)
class Mark:
    """A name that a program gives itself and its children, so that they are found afterwards."""

    name: str

    @property
    def line(self) -> str:
        """For the program to begin with."""
        return f"import ctypes; ctypes.CDLL(None).prctl(15, {self.name!r}.encode())\n"

    def alive(self) -> list[int]:
        found = []
        for comm in Path("/proc").glob("[0-9]*/comm"):
            try:
                if comm.read_text().strip() == self.name:
                    found.append(int(comm.parent.name))
            except OSError:
                continue
        return found


@pytest.fixture
def mark() -> Mark:
    return Mark("t" + secrets.token_hex(6))


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may read and write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)
