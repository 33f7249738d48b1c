"""Run Python that a model wrote, behind walls: no network, no files but its own, little time, memory and company."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal, get_args

from triune.errors import UserError

MIB = 1 << 20

Verdict = Literal["passed", "failed", "timeout", "killed"]
Way = Literal["namespaces", "landlock", "seccomp"]
WAYS: tuple[Way, ...] = get_args(Way)
"""How walls are built, best first.

``namespaces`` shows the program a machine with nothing on it; it needs root or unprivileged user namespaces.
``landlock`` (with seccomp) forbids instead of hiding and works in most containers, on Linux 6.2 and later; the size of
all files together is not limited, unless we are root all our processes count as the program's, and before Linux 6.12
``fcntl`` sends signals to them. ``seccomp`` leaves the user's files open, and ``fcntl``.
"""

WALLS = {
    "network": """
import errno, _socket
try:
    _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM).connect(("127.0.0.1", 9))
except OSError as error:
    assert error.errno != errno.ECONNREFUSED  # an answer from the network
else:
    raise AssertionError
""",
    "processes": """
import os
try:
    os.kill(-1, 0)  # asks whether there is anybody that could be killed
except OSError:
    pass
else:
    raise AssertionError
""",
    "files": """
try:
    open("/etc/passwd")
except OSError:
    pass
else:
    raise AssertionError
""",
}
"""The walls that may be missing on a machine, and for each a program that passes only behind it."""

_LIBRARY = "import bisect, collections, ctypes, decimal, hashlib, heapq, json, math, random, re, socket, statistics"


@dataclass(frozen=True)
class Isolation:
    """What keeps programs in on this machine, as measured."""

    way: Way
    walls: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(wall for wall in WALLS if wall not in self.walls)


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    verdict: Verdict
    """``passed`` if its last line was reached; ``killed`` if a signal ended it, as when memory ran out."""
    stderr: str
    """The last 4 KiB."""
    seconds: float

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


@cache
def isolation(python: str = sys.executable, ways: tuple[Way, ...] = WAYS) -> Isolation:
    """The first of the ways that works here, and which walls stand: each is tried from inside, once.

    Raises:
        UserError: there is none.
    """
    if sys.platform != "linux":
        raise UserError(
            f"Code that a model wrote is run on Linux only, and this is {sys.platform}: use a Linux machine or container "
            "(on Windows also WSL), or leave the coding tasks out."
        )
    reasons = []
    for way in ways:
        try:
            library, *walls = _play([[_LIBRARY, *WALLS.values()]], way, 10.0, 512 * MIB, python)[0]
        except UserError as error:
            reasons.append(str(error))
            continue
        if library.passed:
            return Isolation(way, tuple(wall for wall, o in zip(WALLS, walls, strict=True) if o.passed))
        reasons.append(f"{way} keeps {python} from its own library, which other users must be able to read")
    raise UserError(
        f"Code cannot be run on this machine: {'; '.join(reasons)}. Use Linux 5.12 or later, or a container that allows "
        "user namespaces or landlock, or grade the code elsewhere."
    )


def run_python(
    program: str,
    *,
    seconds: float = 3.0,
    memory: int = 512 * MIB,
    need: Collection[str] = tuple(WALLS),
    ways: tuple[Way, ...] = WAYS,
    python: str = sys.executable,
) -> Outcome:
    """Run a program to its end, if it gets there, and leave nothing behind.

    It passes if its last line is reached, and only then: at the end it shows a token that the program itself cannot
    reach by ordinary means. Exit status, output and early exits do not count, and an exception in a thread does not
    either. It sees the standard library, an empty folder that it may write to, no environment and no input.

    A program can still deceive *itself*: tests that run in the interpreter of the solution believe it. Not covered are
    values that equal everything, patched builtins that the tests use, trace functions that jump over asserts, a string
    left open for the tests to fall into, and a search of its own memory by ctypes. Nor is this a wall against those who
    know a hole in the kernel: give them a virtual machine.

    Args:
        program: source for ``exec``; its ``__name__`` is not ``__main__``, and strings hash the same in every run.
        seconds: of wall time; each process has as much CPU time, rounded up.
        memory: bytes of address space of each process; there may be 16, threads included.
        need: the walls without which nothing is run.
        ways: to build the walls: the first that works is taken.
        python: the interpreter, 3.11 or later.

    Raises:
        UserError: a needed wall is missing here.

    >>> run_python("assert 1 + 1 == 2").passed  # doctest: +SKIP
    True
    >>> run_python("import os; os._exit(0)").verdict  # doctest: +SKIP
    'failed'
    """
    return run_many([program], seconds=seconds, memory=memory, need=need, ways=ways, python=python)[0]


def run_many(
    programs: Sequence[str],
    *,
    workers: int = 1,
    seconds: float = 3.0,
    memory: int = 512 * MIB,
    need: Collection[str] = tuple(WALLS),
    ways: tuple[Way, ...] = WAYS,
    python: str = sys.executable,
) -> list[Outcome]:
    """Run programs as :func:`run_python` does, so many at a time; outcomes in the order given."""
    there = isolation(python, ways)
    if missing := sorted(set(need) & set(there.missing)):
        raise UserError(
            f"Code is not run: on this machine nothing keeps it from {' and '.join(missing)} (best way: {there.way}). "
            "Use a container or user that may create user namespaces, or say which walls you can do without."
        )
    done = _play([programs[i::workers] for i in range(workers)], there.way, seconds, memory, python)
    return [done[i % workers][i // workers] for i in range(len(programs))]


def _play(shares: Sequence[Sequence[str]], way: Way, seconds: float, memory: int, python: str) -> list[list[Outcome]]:
    """The shares side by side, the programs of each one after another."""
    with ExitStack() as stack:
        waits = [stack.enter_context(_keeper(share, way, seconds, memory, python)) for share in shares]
        return [wait() for wait in waits]


_START = (
    "import sys; sys.path.append(sys.argv[1]); import jail; sys.path.pop(); del sys.modules['jail'], sys.argv[1:]; "
    "jail.main()"
)


@contextmanager
def _keeper(
    programs: Sequence[str], way: Way, seconds: float, memory: int, python: str
) -> Iterator[Callable[[], list[Outcome]]]:
    """The process that plays these programs, see :mod:`triune.evals.jail`, and a wait for their outcomes.

    It ends with the context, and all that it plays with it, as after Ctrl-C.
    """
    flags = ("-s", "-S", "-P", "-X", "utf8")  # not -I, which would throw the dice for hashes
    command = [python, *flags, "-c", _START, str(Path(__file__).parent)]
    environment = {"PYTHONHASHSEED": "0", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    with (
        tempfile.TemporaryDirectory(prefix="triune-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as job,
        tempfile.TemporaryFile() as reports,
    ):
        Path(folder).chmod(0o711)
        marshal.dump((way, folder, seconds, memory, list(programs)), job)
        job.seek(0)
        keeper = subprocess.Popen(
            command,
            stdin=job,
            stdout=reports,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        errors = keeper.stderr
        assert errors

        def wait() -> list[Outcome]:
            complaint = errors.read()
            reports.seek(0)
            return [_outcome(reports, way, complaint) for _ in programs]

        with keeper:
            try:
                yield wait
            finally:
                keeper.kill()
                errors.read()  # until the guard has gone, too


def _outcome(reports: IO[bytes], way: Way, complaint: bytes) -> Outcome:
    try:
        verdict, stderr, took = marshal.load(reports)
    except EOFError:  # the keeper itself ended early
        verdict, stderr, took = "broken", complaint, 0.0
    text = stderr.decode(errors="replace")
    if verdict == "broken":
        raise UserError(f"The sandbox did not come up by {way}: {text.strip()[-300:]}")
    return Outcome(verdict, text, took)
