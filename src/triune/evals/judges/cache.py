"""Replies that are there already: what a judge said once is not paid for twice, and a killed run continues.

A JSONL file, one reply a line, appended as soon as it comes: people can read it, and a process that is killed loses the
reply it was writing at most. It keeps replies and not verdicts, so a parser that is mended needs no judge.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triune.errors import UserError
from triune.evals.judges.reply import Body, Reply


def key_of(judge: str, version: str, body: Body) -> str:
    """SHA-256 of judge, version of the prompts and exact request."""
    return hashlib.sha256(json.dumps([judge, version, body], sort_keys=True).encode()).hexdigest()


class Cache:
    """Replies by key. Several processes may add to one file.

    Args:
        path: the file, read where it exists. None keeps replies in memory only.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        try:
            lines = path.read_bytes().split(b"\n") if path and path.exists() else []
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}. Name another file for the replies.") from None
        for line in lines:
            if (row := _row(line)) is not None:
                self._replies[row[0]] = row[1]

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> Reply:
        return self._replies[key]

    def add(self, key: str, reply: Reply, about: Mapping[str, Any]) -> None:
        """Keep a reply, and on its line what people want to know ``about`` it.

        Raises:
            UserError: the file cannot be written.
        """
        self._replies[key] = reply
        if self.path is None:
            return
        line = json.dumps({**about, **asdict(reply), "key": key}, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if end := file.seek(0, os.SEEK_END):
                    file.seek(end - 1)
                    if file.read(1) != b"\n":  # a process was killed in the middle of a line
                        file.write(b"\n")
                file.write(line.encode(errors="backslashreplace"))  # half a surrogate pair, as JSON writes it
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}. Name another file for the replies."
            ) from None


def _row(line: bytes) -> tuple[str, Reply] | None:
    """A key and its reply; None for a line that was cut short, which is asked for again."""
    try:
        row = json.loads(line)
        fields = {name: row[name] for name in Reply.__dataclass_fields__}
        return str(row["key"]), Reply(**fields)
    except (ValueError, KeyError, TypeError):
        return None
