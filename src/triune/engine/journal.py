"""What of a merge is finished, so that an interrupted one continues.

A working folder ``OUT/.triune`` holds the plan's fingerprint, one line for each finished tensor, and the shards in the
making. It is removed when the output is whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from triune.checkpoint.index import read_json
from triune.engine.job import Done
from triune.engine.plan import Plan
from triune.errors import UserError
from triune.output.atomic import write_text

LOCK = "triune.lock.json"


class Journal(AbstractContextManager["Journal"]):
    """The working folder of one merge.

    Opening it makes the folder, or finds what an earlier run of the same plan has finished; another plan is refused.
    """

    def __init__(self, out: Path, fingerprint: str, description: str) -> None:
        self.out = out
        self.folder = out / ".triune"
        self.finished: dict[str, Done] = {}
        plan = self.folder / "plan.json"
        if plan.exists():
            theirs = read_json(plan)
            if theirs.get("fingerprint") != fingerprint:
                what = theirs.get("description", "unknown")
                raise UserError(
                    f"{out} holds an unfinished merge of something else ({what}). Continue that one with "
                    f"its own command, remove {self.folder}, or choose another output folder."
                )
            self._load()
        else:
            refuse_occupied(out)
            shutil.rmtree(self.folder, ignore_errors=True)  # left behind while it was being thrown away
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{out} cannot be made: {error.strerror}. Name another folder.") from None
            write_text(plan, json.dumps({"fingerprint": fingerprint, "description": description}) + "\n")
        self._lines = os.open(self.folder / "journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lines)
            raise UserError(f"Another process is merging into {out}. Wait for it, or choose another folder.") from None

    def _load(self) -> None:
        journal = self.folder / "journal.jsonl"
        if not journal.exists():
            return
        whole = journal.read_bytes()
        # A line that was being written when the process died has no end: forget it.
        end = whole.rfind(b"\n") + 1
        if end != len(whole):
            os.truncate(journal, end)
        for line in whole[:end].splitlines():
            try:
                entry = json.loads(line)
                entry["inputs"] = {int(k): v for k, v in entry["inputs"].items()}
                entry["deltas"] = tuple(entry["deltas"])
                self.finished[entry["tensor"]] = Done(**entry)
            except (ValueError, KeyError, TypeError):
                continue  # after a power cut a line may hold anything: that tensor is made again

    def add(self, done: Done) -> None:
        """Record a tensor that is in place."""
        os.write(self._lines, json.dumps(asdict(done)).encode() + b"\n")
        self.finished[done.tensor] = done

    def forget(self, tensor: str) -> None:
        """Take a tensor back that turned out not to be in place."""
        self.finished.pop(tensor, None)

    def discard(self) -> None:
        """Leave nothing behind: the input was wrong."""
        (self.folder / "journal.jsonl").unlink(missing_ok=True)  # first: bytes without a journal are never trusted
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.out.exists() and not any(self.out.iterdir()):
            self.out.rmdir()

    def finish(self) -> None:
        """The output is whole."""
        shutil.rmtree(self.folder)

    def __exit__(self, *_: object) -> None:
        os.close(self._lines)  # which gives up the lock


def is_finished(plan: Plan, out: Path) -> bool:
    """Whether the folder holds this very merge already."""
    return (out / LOCK).exists() and read_json(out / LOCK).get("fingerprint") == plan.fingerprint


def in_the_way(folder: Path) -> str | None:
    """What stands where a folder is or should be made, in words; None if nothing does."""
    there = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
    if there.is_dir():
        return None
    return f"{there} is {'a file' if there.exists() else 'a link to nothing'}"


def refuse_occupied(out: Path) -> None:
    """Nothing is ever overwritten."""
    if obstacle := in_the_way(out):
        raise UserError(f"The output {obstacle}. Name a folder that does not exist yet.")
    if out.exists() and any(p.name != ".triune" for p in out.iterdir()):
        raise UserError(f"The output folder {out} is not empty, and nothing is overwritten. Name another or empty it.")
