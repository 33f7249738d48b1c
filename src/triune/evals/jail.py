"""The far side of :mod:`triune.evals.sandbox`: put up the walls, play one program behind them, say how it ended.

It runs as a process of its own under ``python -S`` and imports nothing of triune. For each program there are three
processes: the *keeper* (one for the batch), which lives on; a *guard*, its child, which puts up walls that hold for
itself and its children, watches the clock and reports; and the *player*, child of the guard, which is the program.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import select
import struct
import sys
import time
import types
from contextlib import suppress
from typing import Any, NamedTuple

MIB = 1 << 20
DISK = 64 * MIB
"""For one file; with ``namespaces`` for all files together."""
PROCESSES = 16
"""Threads count, too."""
FILES = 64
TAIL = 4096
"""Bytes of the program's errors that are kept."""
SETUP = 30.0
"""Seconds for the walls to be up."""
RESULT = 3
"""The player's file descriptor for its proof."""
SYSTEM = ("/usr", "/lib", "/lib64", "/nix/store", sys.base_prefix)
"""What Python needs to load a module: all that the program can read outside its folder."""
DEVICES = ("/dev/null", "/dev/urandom")


class Job(NamedTuple):
    """What the keeper is asked to do."""

    way: str
    folder: str
    seconds: float
    memory: int
    programs: list[str]


class Report(NamedTuple):
    """How a program ended."""

    verdict: str
    """As in :data:`triune.evals.sandbox.Verdict`, or ``broken`` if the walls could not be put up."""
    stderr: bytes
    seconds: float


# The kernel ----------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: Any) -> int:
    """A function of libc that returns -1 on failure."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]  # C would take the upper half from anywhere
    result = int(getattr(_libc, name)(*longs))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


PIDFD_OPEN, MOUNT_SETATTR = 434, 442  # the same on all machines, as are those of landlock
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SIGKILL = 9
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 1 << 12, 1 << 14, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30


def become_nobody(user: int) -> None:
    """From root to the owner of this folder and of nothing else, so that limits for a user are limits for a program."""
    for known in (user, 65534):  # the second in rootless containers, which have few users
        with suppress(OSError):
            os.chown(".", known, known)
            break
    else:
        raise OSError("root knows no other user here that the program could be")
    os.setgroups([])
    os.setresgid(known, known, known)
    os.setresuid(known, known, known)


def namespaces(root: str, user: int) -> None:
    """A world with no network, no other process, and no files but Python's own, for this process and its children.

    Raises:
        OSError: the kernel or its settings forbid it.
    """
    apart = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    try:
        if os.geteuid() != 0:
            raise PermissionError
        call("unshare", apart)
    except PermissionError:  # no root, or the root of a container; anyone may be root of a user namespace
        if os.geteuid() == 0:
            become_nobody(user)
            call("prctl", PR_SET_DUMPABLE, 1)  # or the files below would not be ours to write
        maps = {
            "setgroups": "deny",
            "uid_map": "{0} {0} 1".format(os.getuid()),
            "gid_map": "{0} {0} 1".format(os.getgid()),
        }
        call("unshare", apart | CLONE_NEWUSER)
        for name, line in maps.items():
            with open(f"/proc/self/{name}", "w") as stream:
                stream.write(line)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"tmpfs", root.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
    for path in dict.fromkeys((*SYSTEM, *DEVICES)):
        _show(path, root + path)
    os.mkdir(f"{root}/tmp")
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    read_only = struct.pack("=QQQQ", MS_RDONLY | MS_NOSUID, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, read_only, len(read_only))
    call("mount", b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV, b"size=%d,mode=1777" % DISK)
    os.chdir("/tmp")


def _show(path: str, target: str) -> None:
    if not os.path.exists(path):
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT))
    call("mount", path.encode(), target.encode(), None, MS_BIND | MS_REC, None)


def landlock() -> None:
    """No files but Python's own, and those in the working directory: https://docs.kernel.org/userspace-api/landlock.html.

    Raises:
        OSError: the kernel has none, or one so old that it cannot stop a program from cutting files short.
    """
    create, add, restrict = 444, 445, 446
    version = call("syscall", create, None, 0, 1)
    if version < 3:
        raise OSError("landlock: the kernel is older than 6.2")
    no_signals = 2 if version >= 6 else 0  # to others, not even by fcntl
    execute, write_file, read_file, read_dir, truncate, everything = 1, 2, 4, 8, 1 << 14, (1 << 15) - 1
    rules = call("syscall", create, struct.pack("=QQQ", everything, 0, no_signals), 24, 0)
    allowed = dict.fromkeys(SYSTEM, execute | read_file | read_dir)
    allowed |= dict.fromkeys(DEVICES, read_file | write_file | truncate)
    allowed["."] = everything & ~execute
    for path, rights in allowed.items():
        with suppress(FileNotFoundError):
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            call("syscall", add, rules, 1, struct.pack("=Qi", rights, beneath), 0)
            os.close(beneath)
    call("syscall", restrict, rules, 0)
    os.close(rules)


MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Each with its name in <linux/audit.h>."""
# fmt: off
FORBIDDEN = {  # the number of each system call on those machines, -1 if there is none
    # the network
    "socket": (41, 198), "io_uring_setup": (425, 425),
    # the processes of others
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "ptrace": (101, 117), "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "prlimit64": (302, 261),
    # the ways out of the process group, by which the guard finds all children
    "setpgid": (109, 154), "setsid": (112, 157),
    # what outlives its processes
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # what landlock lets through: all about a file but its contents
    "chmod": (90, -1), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "lchown": (94, -1), "fchownat": (260, 54),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "removexattr": (197, 14), "lremovexattr": (198, 15),
}
# fmt: on
NEWER = 463
"""System calls from here on are newer than this list and forbidden, too."""


def seccomp() -> None:
    """The system calls above fail with EPERM.

    Raises:
        OSError: the kernel or the container forbids filters, or the machine is of an unknown kind.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"seccomp: the numbers of system calls on {machine} are not known here")
    column = [*MACHINES].index(machine)
    numbers = sorted(known[column] for known in FORBIDDEN.values() if known[column] >= 0)
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06
    allow, deny, kill = 0x7FFF0000, 0x00050001, 0x80000000  # deny: the error is 1, EPERM
    lines = [(load, 0, 0, 4), (equal, 1, 0, MACHINES[machine]), (leave, 0, 0, kill), (load, 0, 0, 0)]
    lines += [(at_least, len(numbers) + 1, 0, NEWER)]  # jumps count the lines in between
    lines += [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    lines += [(leave, 0, 0, allow), (leave, 0, 0, deny)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


# The player ----------------------------------------------------------------------------------------------------------


def player(job: Job, program: str, user: int, errors: int, result: int) -> None:
    """Become the program. Does not return."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd, place in ((null, 0), (null, 1), (errors, 2), (result, RESULT)):
        os.dup2(fd, place)
    os.closerange(RESULT + 1, 1 << 16)
    leave, show, write = os._exit, sys.excepthook, os.write  # before the program can replace them
    try:
        lock_up(job, user)
    except Exception as error:
        write(2, str(error).encode())
        leave(1)
    try:
        # While the program runs, its token lies on the stack of this expression, where neither frames nor gc show it.
        write(RESULT, told(os.urandom(32)) + run(program))
    except BaseException as error:
        ours = error.__traceback__ and error.__traceback__.tb_next
        try:
            show(type(error), BaseException.with_traceback(error, ours and ours.tb_next), None)
        finally:
            leave(1)
    leave(0)


def lock_up(job: Job, user: int) -> None:
    """The walls that hold for the program itself. They cannot be taken down again."""
    seconds = int(job.seconds) + 1
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: job.memory,
        resource.RLIMIT_FSIZE: DISK,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    if os.geteuid() == 0:
        become_nobody(user)
    call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_PDEATHSIG, SIGKILL)
    call("prctl", PR_SET_DUMPABLE, 0)  # closes /proc/self/mem and /proc/self/fd
    if job.way == "landlock":
        landlock()
    if job.way in ("landlock", "seccomp"):
        seccomp()
    os.environ.clear()
    sys.argv[:] = ["<program>"]


def told(token: bytes) -> bytes:
    """Tell the guard the token that the program must show at its end."""
    os.write(RESULT, token)
    return token


def run(program: str) -> bytes:
    """Play the program; the empty bytes are for the expression that calls this."""
    module = types.ModuleType("program")  # not __main__: as in the official harness, such blocks are not run
    sys.modules["program"] = module  # where pickle, dataclasses and typing look
    exec(compile(program, "<program>", "exec"), module.__dict__)
    return b""


# The guard -----------------------------------------------------------------------------------------------------------


class Pipe:
    """From the player to the guard, who keeps a part of what is said."""

    def __init__(self, keep: slice) -> None:
        self.keep, self.heard = keep, b""
        self.end, self.mouth = os.pipe()

    def hear(self) -> bool:
        """Whether there may be more."""
        data = os.read(self.end, 1 << 16)
        self.heard = (self.heard + data)[self.keep]
        return data != b""


def guard(job: Job, program: str, folder: str) -> Report:
    """Play one program. When this returns, no process of it is left."""
    keeper = call("syscall", PIDFD_OPEN, os.getppid(), 0)
    user = (1 << 30) + os.getpid()
    call("prctl", PR_SET_CHILD_SUBREAPER, 1)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
        stream.write("1000")  # if memory runs out, this first
    if job.way == "namespaces":
        namespaces(job.folder, user)
    else:
        os.mkdir(folder)
        os.chdir(folder)
    errors, result = Pipe(slice(-TAIL, None)), Pipe(slice(64))
    pid = os.fork()
    if pid == 0:
        try:
            player(job, program, user, errors.mouth, result.mouth)
        finally:
            os._exit(1)
    for pipe in (errors, result):
        os.close(pipe.mouth)
    ended, seconds = watch(pid, keeper, errors, result, job.seconds)
    status = end(pid)
    for pipe in (errors, result):  # what was still in it: nobody is left to write
        while pipe.hear():
            pass
    token, proof = result.heard[:32], result.heard[32:]
    if not token:
        return Report("broken", errors.heard, 0.0)
    if proof == token:
        verdict = "passed"
    elif not ended:
        verdict = "timeout"
    else:
        verdict = "killed" if os.WIFSIGNALED(status) else "failed"
    return Report(verdict, errors.heard, seconds)


def watch(pid: int, keeper: int, errors: Pipe, result: Pipe, seconds: float) -> tuple[bool, float]:
    """Listen to the player, until its time is up or it or the keeper ends: whether it ended, and after how long."""
    process = call("syscall", PIDFD_OPEN, pid, 0)
    pipes = {pipe.end: pipe for pipe in (errors, result)}
    poll = select.poll()
    for fd in (*pipes, process, keeper):
        poll.register(fd, select.POLLIN)
    began, deadline, ended = 0.0, time.monotonic() + SETUP, False
    while not ended and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            if fd not in pipes:
                ended = True
            elif not pipes[fd].hear():
                poll.unregister(fd)
            elif fd == result.end and not began:
                began = time.monotonic()
                deadline = began + seconds
    return ended, time.monotonic() - began


def end(pid: int) -> int:
    """Kill the player and its children. Returns its status when all are gone."""
    for kill in (os.kill, os.killpg):  # both: it may not have reached its own group yet
        with suppress(ProcessLookupError):
            kill(pid, SIGKILL)
    status = os.waitpid(pid, 0)[1]
    with suppress(ChildProcessError):
        while True:
            os.wait()
    return status


# The keeper ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Read a job from standard input, play its programs one after another, write their reports to standard output."""
    call("prctl", PR_SET_PDEATHSIG, SIGKILL)
    job = Job(*marshal.loads(sys.stdin.buffer.read()))
    for number, program in enumerate(job.programs):
        pid = os.fork()
        if pid == 0:
            try:
                report = guard(job, program, f"{job.folder}/{number}")
            except Exception as error:
                report = Report("broken", str(error).encode(), 0.0)
            finally:
                os.write(1, marshal.dumps(tuple(report)))
                os._exit(0)
        if os.waitpid(pid, 0)[1]:
            os.write(1, marshal.dumps(tuple(Report("killed", b"The kernel killed the guard of this program.", 0.0))))
