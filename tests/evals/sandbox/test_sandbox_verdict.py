"""What passes in the sandbox, what only pretends to, and what is said where there is none."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triune.errors import UserError
from triune.evals import sandbox
from triune.evals.sandbox import WALLS, Isolation, Outcome, isolation, run_many, run_python

ENDS = {
    "passed": [
        "",
        "assert 1 + 1 == 2",
        "import math, re, json, collections, datetime, decimal, heapq, itertools, random, typing",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nassert A(1) == A(1)",
        "import pickle\nclass A: pass\nassert isinstance(pickle.loads(pickle.dumps(A())), A)",
        "open('a', 'w').write('b'); assert open('a').read() == 'b'",
        "open('/dev/null', 'w').write('b'); assert open('/dev/urandom', 'rb').read(1)",
        "import tempfile; tempfile.TemporaryFile().write(b'x')",
        "import os; assert os.listdir('.') == []",
        "assert '\\u00e9'.encode() == b'\\xc3\\xa9'",
        "if __name__ == '__main__': raise ValueError",
        "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
        "f = lambda n: n and 1 + f(n - 1)\nassert f(900) == 900",
    ],
    "failed": [
        "assert 1 + 1 == 3",
        "1 / 0",
        "raise SystemExit(0)",
        "import sys; sys.exit()",
        "import os; os._exit(0)",
        "raise KeyboardInterrupt",
        "def (",
        "x = '\0'",
        "x = '\ud800'",
        "f = lambda: f()\nf()",
        "(" * 10000,
        "input()",
        "import numpy",
        "import triune",
        "import jail",
    ],
    "killed": [
        "import ctypes; ctypes.string_at(0)",
        "import sys; sys.setrecursionlimit(10 ** 9)\nx = []\nfor _ in range(10 ** 5): x = [x]\nrepr(x)",  # the C stack
    ],
}


@pytest.mark.parametrize("verdict", ENDS)
def test_the_verdict(best: Any, verdict: str) -> None:
    outcomes = best.many(ENDS[verdict], workers=2)
    assert [(p, o) for p, o in zip(ENDS[verdict], outcomes, strict=True) if o.verdict != verdict] == []
    assert all(0 <= o.seconds < 20 for o in outcomes)


def test_recursion_without_a_limit_ends_with_the_memory(best: Any) -> None:
    outcome = best("import sys; sys.setrecursionlimit(10 ** 9)\nf = lambda: f()\nf()", memory=100 << 20)
    assert outcome.verdict in ("failed", "killed")


def test_a_failure_is_told_with_its_line_and_no_path_of_this_machine(best: Any) -> None:
    outcome = best("x = 1\nassert x == 2, 'no'")
    assert outcome.stderr.splitlines()[1:] == ['  File "<program>", line 2, in <module>', "AssertionError: no"]


def test_the_same_program_has_the_same_verdict_whatever_strings_hash_to(best: Any) -> None:
    assert len({best("raise ValueError(list({'a', 'b', 'c', 'd', 'e', 'f'}))").stderr for _ in range(4)}) == 1


def test_outcomes_come_in_the_order_of_the_programs(best: Any) -> None:
    programs = [f"assert {i} % 3" for i in range(10)]
    assert [o.passed for o in best.many(programs, workers=3)] == [i % 3 > 0 for i in range(10)]
    assert best.many([]) == []


# Programs that would like to have passed -----------------------------------------------------------------------------

CHECK = "\ndef check(f):\n    assert f(1) == 2\n    assert f(2) == 3\ncheck(f)\n"

WRONG = [
    "def f(x):\n    try:\n        return x\n    except BaseException:\n        return x",
    "def f(x):\n    import os\n    os._exit(0)",
    "def f(x):\n    raise SystemExit(0)",
    "def f(x): return x\ndef check(f): pass",
    "import builtins\nbuiltins.AssertionError = builtins.Exception = type('E', (), {})\ndef f(x): return x",
    "import sys\nsys.excepthook = lambda *a: None\ndef f(x): return x",
    "import os\nos._exit = lambda *a: None\nos.write = lambda *a: 32\ndef f(x): return x",
    "import builtins\nbuiltins.exec = builtins.type = builtins.compile = lambda *a: None\ndef f(x): return x",
    "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return x",
    "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef f(x): return os.kill(os.getpid(), 15)",
    "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed' * 20)\n    except OSError: pass\nos._exit(0)",
    "import os\nif os.fork(): os._exit(0)\ndef f(x): return x",
    "import sys\nsys.modules['os'] = sys.modules['program'] = None\ndef f(x): return x",
    "import threading, os\nthreading.Timer(0.05, os._exit, (0,)).start()\ndef f(x):\n    while True: pass",
    "class E(Exception):\n    def __str__(self): raise self\ndef f(x): raise E",
    "class T(type(Exception)): pass\nclass E(Exception, metaclass=T):\n    __traceback__ = 3\ndef f(x): raise E",
]


def test_a_wrong_solution_does_not_pass(box: Any) -> None:
    assert box("def f(x): return x + 1" + CHECK).passed
    outcomes = box.many([solution + CHECK for solution in WRONG])
    assert [solution for solution, outcome in zip(WRONG, outcomes, strict=True) if outcome.passed] == []


THIEF = """
import gc, os, sys
seen = set()
def look(thing, depth=0):
    if isinstance(thing, bytes) and len(thing) == 32:
        seen.add(thing)
    elif depth < 3:
        for other in gc.get_referents(thing):
            look(other, depth + 1)
def steal():
    frame = sys._getframe()
    while frame:
        look(frame)
        for value in (*frame.f_locals.values(), *frame.f_globals.values()):
            look(value)
        frame = frame.f_back
    for thing in gc.get_objects():
        look(thing, 2)
    for fd in range(64):
        for way in (lambda: fd, lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)):
            try:
                source = way()
                os.set_blocking(source, False)
                look(os.read(source, 32))
            except OSError:
                pass
def here():
    mine = bytes(range(32))  # shows that the thief can find such a thing
    steal()
    return [thing == mine for thing in seen]
print("found:", here(), file=sys.stderr)
for token in seen:
    os.write(3, token)
os._exit(0)
"""


def test_the_token_is_not_found_by_introspection(box: Any) -> None:
    outcome = box(THIEF)
    assert outcome.stderr == "found: [True]\n"
    assert outcome.verdict == "failed"


# What is said of the walls -------------------------------------------------------------------------------------------


def test_isolation_says_which_walls_stand(box: Any) -> None:
    assert box.isolation.missing == {"namespaces": (), "landlock": (), "seccomp": ("files",)}[box.way]


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
@pytest.mark.parametrize("wall", WALLS)
def test_a_wall_that_is_not_there_is_not_seen(wall: str) -> None:
    """The programs that try the walls fail where there are none. Signal 0 only asks."""
    done = subprocess.run([sys.executable, "-c", WALLS[wall]], capture_output=True, text=True)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_nothing_is_run_without_a_needed_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "isolation", lambda *a: Isolation("seccomp", ("network", "processes")))
    monkeypatch.setattr(sandbox, "_play", lambda shares, *a: [[Outcome("passed", "", 0.0) for _ in s] for s in shares])
    with pytest.raises(UserError, match=r"nothing keeps it from files \(best way: seccomp\)\. Use a container"):
        run_python("pass")
    assert run_python("pass", need=("network", "processes")).passed


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
def test_a_machine_without_a_sandbox_is_told_so(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"Code cannot be run on this machine: .*by namespaces: no such thing"):
        run_python("pass", python=str(python))


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_another_system_is_told_so(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(UserError, match=f"run on Linux only, and this is {system}: use a Linux machine or container"):
        isolation(f"python of {system}")


def test_a_library_out_of_reach_is_told_and_not_taken_for_a_missing_wall(
    best: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_LIBRARY", "import antigravity_engine")
    with pytest.raises(UserError, match=r"namespaces keeps \S+ from its own library, which other users must be able"):
        isolation.__wrapped__(best.python, ("namespaces",))


def test_limits_that_the_machine_sets_lower_are_kept(best: Any) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the limit is low here, so all tests show it")
    mine = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 20}, {1 << 20}))"
    program = f"import resource; assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == {1 << 20}"
    code = f"{mine}; from triune.evals.sandbox import run_many; print(run_many([{program!r}], **{best.settings!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "verdict='passed'" in done.stdout, done


def test_it_runs_as_in_its_docstring(best: Any) -> None:
    assert run_python("assert 1 + 1 == 2").passed
    assert [o.verdict for o in run_many(["import os; os._exit(0)"], workers=3)] == ["failed"]
