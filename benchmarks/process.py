"""What a whole process costs: wall time, processor time, peak resident memory, from its start to its end.

The numbers are those of ``/usr/bin/time -v``. As there, a small process starts the program and waits for it, since a
program's peak resident memory is never below that of the process that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Of one run of a program."""

    code: int
    """Exit code; negative is a signal."""
    wall: float
    cpu: float
    """Seconds."""
    peak: int
    """Bytes."""


def measure(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Cost:
    """Run a program and say what it cost; what it prints goes to the log.

    >>> measure([sys.executable, "-c", "raise SystemExit(3)"], Path(os.devnull)).code
    3
    """
    with log.open("w") as output:
        output.write(f"{' '.join(command)}\n")
        output.flush()
        told = subprocess.run(
            [sys.executable, "-I", "-S", __file__, str(output.fileno()), *command],
            stdout=subprocess.PIPE,
            pass_fds=[output.fileno()],
            env={**os.environ, **(environment or {})},
            check=True,
        )
    return Cost(**json.loads(told.stdout))


def _run(command: list[str], output: int) -> Cost:
    start = time.monotonic()
    child = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)],
    )
    _, status, used = os.wait4(child, 0)
    wall = time.monotonic() - start
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(os.waitstatus_to_exitcode(status), wall, used.ru_utime + used.ru_stime, peak)


if __name__ == "__main__":
    print(json.dumps(asdict(_run(sys.argv[2:], int(sys.argv[1])))))
