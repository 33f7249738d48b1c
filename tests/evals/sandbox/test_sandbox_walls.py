"""Hostile programs, tried from inside. None of these harms the machine if a wall is missing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from triune.evals import sandbox
from triune.evals.sandbox import WAYS

PLAIN = "/usr/bin/python3"

# Time, memory and company --------------------------------------------------------------------------------------------

FLOOD = "import sys\nwhile True: sys.stderr.write('x' * 100000)"
DEAF = """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try: time.sleep(60)
    except BaseException: pass
"""


def test_an_endless_program_ends(box: Any) -> None:
    for outcome in box.many(["while True: pass", "import time; time.sleep(60)", DEAF, FLOOD], seconds=0.3):
        assert outcome.verdict == "timeout"
        assert 0.3 <= outcome.seconds < 10


TAKE = "import mmap; mmap.mmap(-1, {} << 20)"  # never touched, so that nothing is taken if the wall is missing


def test_memory_is_limited(box: Any) -> None:
    assert "Cannot allocate memory" in box(TAKE.format(10240)).stderr
    assert box(TAKE.format(300)).passed
    assert not box(TAKE.format(300), memory=200 << 20).passed
    assert "MemoryError" in box("bytearray(300 << 20)", memory=200 << 20).stderr


def test_limits_cannot_be_raised(box: Any) -> None:
    raised = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))"
    assert box("import resource").passed
    assert not box(raised).passed


BOMB = """
import errno, os, time
children = 0
try:
    for _ in range(200):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        children += 1
except OSError as error:
    assert error.errno == errno.EAGAIN
time.sleep(1)
assert children < 16, children
"""


def test_a_fork_bomb_is_small_and_leaves_nobody(box: Any, mark: Any) -> None:
    outcome = box(mark.line + BOMB)
    assert outcome.passed, outcome.stderr
    assert mark.alive() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give each program a user of its own")
def test_a_fork_bomb_takes_nothing_from_its_neighbour(box: Any) -> None:
    """15 children beside the program itself make 16, for each of two programs at the same time."""
    outcomes = box.many([BOMB + "assert children == 15, children"] * 2, workers=2)
    assert [o.stderr for o in outcomes] == ["", ""]


DAEMON = """
import os, time
if os.fork() == 0:
    try: os.setsid()
    except OSError: pass
    if os.fork() == 0:
        os.closerange(0, 64)
        time.sleep(60)
    os._exit(0)
time.sleep(0.2)
"""


@pytest.mark.parametrize("end", ["", "while True: pass", "1 / 0"])
def test_no_child_is_left_behind(box: Any, mark: Any, end: str) -> None:
    began = time.monotonic()
    box(mark.line + DAEMON + end, seconds=2.0)
    assert mark.alive() == []
    assert time.monotonic() - began < 20  # it was ended, not waited for


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_we_ourselves_are_stopped(box: Any, mark: Any, public: Path, how: signal.Signals) -> None:
    """Killed, or by Ctrl-C: neither the program nor the daemon that it has started; after Ctrl-C, no folder either."""
    program = mark.line + DAEMON + "while True: pass"
    call = f"run_many([{program!r}] * 4, workers=2, seconds=60, **{box.settings!r})"
    listen = "import signal; signal.signal(2, signal.default_int_handler)"  # background jobs begin deaf to Ctrl-C
    code = f"{listen}; from triune.evals.sandbox import run_many; {call}"
    place = {**os.environ, "TMPDIR": str(public)}
    us = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=place)
    assert _soon(lambda: len(mark.alive()) >= 4)  # two programs, two daemons
    us.send_signal(how)
    us.wait(timeout=20)
    assert _soon(lambda: mark.alive() == [])
    assert how == signal.SIGKILL or os.listdir(public) == []


def _soon(true: Any, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not true():
        time.sleep(0.05)
    return bool(true())


# Output and files ----------------------------------------------------------------------------------------------------


def test_a_huge_output_is_cut_to_its_end(box: Any) -> None:
    outcome = box(
        "import sys\nfor _ in range(500):\n    for s in (sys.stdout, sys.stderr): s.write('x' * 100000)\n"
        "sys.stderr.write('the end\\n')"
    )
    assert outcome.passed
    assert len(outcome.stderr) <= 4096
    assert outcome.stderr.endswith("xthe end\n")


def test_output_that_is_no_text_is_shown(box: Any) -> None:
    assert "\ufffd" in box("import os; os.write(2, b'\\xff'); 1 / 0").stderr


FILL = """
written = 0
try:
    for name in range({files}):
        with open(str(name), "wb") as stream:
            for _ in range({chunks}):
                written += stream.write(bytes(1 << 20))
                stream.flush()
except OSError:
    pass
assert 30 < written >> 20 <= 64, written >> 20
"""


def test_one_file_is_limited(box: Any) -> None:
    outcome = box(FILL.format(files=1, chunks=100))
    assert outcome.passed, outcome.stderr


def test_all_files_together_are_limited_in_a_namespace(best: Any) -> None:
    outcome = best(FILL.format(files=10, chunks=10))
    assert outcome.passed, outcome.stderr


def test_nothing_outside_the_folder_can_be_written(box: Any, public: Path, mark: Any) -> None:
    if box.way == "seccomp":
        pytest.skip("has no wall for files")
    precious = public / "precious"
    precious.write_text("mine")
    precious.chmod(0o666)
    folders = (public, Path("/tmp"), Path("/dev/shm"), Path("/usr"))
    places = [str(p) for p in (precious, *(folder / mark.name for folder in folders))]
    program = f"""
import os
for place in {places}:
    for act in (lambda: open(place, "w").write("x"), lambda: os.truncate(place, 0), lambda: os.remove(place),
                lambda: os.mkdir(place), lambda: os.symlink("x", place), lambda: os.rename(place, place + "2")):
        try: act()
        except OSError: pass
"""
    assert box(program).passed
    assert precious.read_text() == "mine"
    assert [p for p in places[1:] if os.path.lexists(p)] == []


def test_what_a_namespace_shows_is_read_only(best: Any) -> None:
    """Also to a user who owns Python's files."""
    folders = "'/', '/usr', os.path.dirname(os.__file__), '/tmp'"
    program = f"import os\nfound = [os.statvfs(p).f_flag & 1 for p in ({folders})]\nassert found == [1, 1, 1, 0], found"
    assert best(program).passed


def test_what_lies_outside_cannot_be_read(box: Any) -> None:
    if box.way == "seccomp":
        pytest.skip("has no wall for files")
    places = ("/etc/passwd", "/proc/self/environ", "/proc/1/cmdline", str(Path(__file__)))
    assert [o.verdict for o in box.many([f"open({p!r}, 'rb').read()" for p in places])] == ["failed"] * 4


def test_the_environment_is_empty(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    outcome = box(
        "import os, ctypes\nassert not dict(os.environ), os.environ\nlibc = ctypes.CDLL(None)\n"
        "libc.getenv.restype = ctypes.c_char_p\nassert libc.getenv(b'SECRET_TOKEN') is None"
    )
    assert outcome.passed, outcome.stderr


LOCKED = """
import os
os.makedirs("a/b/c")
open("a/b/c/d", "w").close()
for folder in ("a/b", "."):
    try: os.chmod(folder, 0)
    except PermissionError: pass
"""


def test_the_temporary_folder_goes_even_if_the_program_locks_it(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = sandbox.tempfile.TemporaryDirectory

    class Watched(real):  # type: ignore[valid-type, misc]
        def __enter__(self) -> str:
            made.append(super().__enter__())
            return made[-1]

    monkeypatch.setattr(sandbox.tempfile, "TemporaryDirectory", Watched)
    assert box(LOCKED).passed
    assert made
    assert not any(os.path.exists(folder) for folder in made)


# Others --------------------------------------------------------------------------------------------------------------


def test_the_network_is_out_of_reach(box: Any) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):  # it can be reached from here
            server.accept()[0].close()
        outcome = box(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)")
        assert outcome.verdict == "failed"
        assert "unreachable" in outcome.stderr or "not permitted" in outcome.stderr
        with pytest.raises(TimeoutError):
            server.accept()


def test_nobody_else_can_be_signalled(box: Any) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            program = f"""
import os
hit = []
for aim in {[bystander.pid, os.getpid(), os.getppid(), -1, 1]}:
    for signal in (0, {int(signal.SIGTERM)}) if aim == {bystander.pid} else (0,):
        try: os.kill(aim, signal)
        except OSError: continue
        hit.append(aim)
assert not hit or hit == [1] == [os.getpid()], hit
"""
            outcome = box(program)
            assert outcome.passed, outcome.stderr
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_who_kills_the_parent_only_ends_itself(box: Any) -> None:
    """The guard lives on to tell what became of it, and the keeper to play the next program."""
    shots = ("os.kill(os.getppid(), 9)", "os.killpg(os.getpgid(os.getppid()), 9)", "os.killpg(0, 9)")
    outcomes = box.many(["", *(f"import os\n{shot}\nwhile True: pass" for shot in shots), ""], seconds=1.0)
    assert [o.passed for o in outcomes] == [True, False, False, False, True]


def test_killing_everybody_kills_only_its_own(best: Any, mark: Any) -> None:
    program = (
        "import os, time\nassert os.getpid() == 1  # before the shot: nobody else is in this world\n"
        "child = os.fork()\nif child == 0: time.sleep(60)\n"
        "os.kill(-1, 9)\nassert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9"
    )
    assert best(mark.line + program).passed
    assert mark.alive() == []


def test_the_program_is_nobody(box: Any) -> None:
    assert box("import os\nassert os.getuid() != 0 != os.geteuid()").passed
    deeds = ("os.setuid(0)", "os.chroot('.')", "os.setgroups([0])", "os.nice(-5)")
    assert [o.verdict for o in box.many([f"import os\n{deed}" for deed in deeds])] == ["failed"] * 4


# Users and containers ------------------------------------------------------------------------------------------------

MEDDLE = """
import fcntl, os
mine, other = {file!r}, {pid}
def shoot():
    end, mouth = os.pipe()
    fcntl.fcntl(end, fcntl.F_SETOWN, other)
    fcntl.fcntl(end, 10, 9)  # F_SETSIG: SIGKILL
    fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC)
    os.write(mouth, b"x")
for act in (lambda: os.chmod(mine, 0), lambda: os.utime(mine, (1, 1)), lambda: os.setxattr(mine, "user.a", b"b"), shoot):
    try: act()
    except OSError: pass
"""
INSIDE = f"""
import json, os, subprocess
from pathlib import Path
from triune.evals.sandbox import *
programs = ["", "1 / 0", "open('/proc/self/mem', 'rb')", "import os; os.chroot('.')"]
mine = Path("mine")
mine.touch()
before = mine.stat()
with subprocess.Popen(["sleep", "60"]) as other:
    meddle = {MEDDLE!r}.format(file=str(mine.absolute()), pid=other.pid)
    found = {{}}
    for way in WAYS:
        walls = isolation(ways=(way,)).walls
        shots = [meddle] if way != "seccomp" else []
        verdicts = [o.verdict for o in run_many(programs + shots, ways=(way,), need=walls)][:4]
        found[way] = [walls, verdicts, mine.stat() == before and os.listxattr(mine) == [], other.poll() is None]
    other.kill()
print(json.dumps(found))
"""
LITTLE_ROOT = """
import ctypes, os, sys
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    ctypes.CDLL(None).unshare(1 << 28)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
os.read(ready[0], 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{child}/{name}", "w") as stream:
        stream.write("0 100000 65536")
os.write(go[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
SOMEBODY = {
    "a plain user": ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    "root of a container": ("setpriv", "--bounding-set", "-sys_admin"),
    "root of a rootless container": (PLAIN, "-c", LITTLE_ROOT),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("who", SOMEBODY)
def test_root_is_not_needed(who: str, public: Path) -> None:
    for folder in ("triune", "triune/evals"):
        (public / folder).mkdir()
        (public / folder / "__init__.py").touch()
    for module in ("errors.py", "evals/sandbox.py", "evals/jail.py"):
        (public / "triune" / module).write_bytes((Path(sandbox.__file__).parents[1] / module).read_bytes())
    path = {"PYTHONPATH": str(public), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    try:
        done = subprocess.run(
            [*SOMEBODY[who], PLAIN, "-c", INSIDE], capture_output=True, env=path, cwd=public, text=True, timeout=120
        )
    except FileNotFoundError:
        pytest.skip("needs setpriv and a Python for all")
    if any(lack in done.stderr for lack in ("No such file", "not permitted", "not implemented", "older than")):
        pytest.skip("the kernel does not give this to them, or they have no Python")
    assert done.returncode == 0, done.stderr
    walls = {way: [*sandbox.WALLS] if way != "seccomp" else ["network", "processes"] for way in WAYS}
    verdicts = ["passed", "failed", "failed", "failed"]
    assert json.loads(done.stdout) == {way: [walls[way], verdicts, True, True] for way in WAYS}
