"""Scoring takes long: batch by batch, each kept as soon as it is done, so that a run that was killed continues.

The scores stand in a JSONL file: a first line with the fingerprint of model and pairs, then one line a pair,
``{"id": ..., "rewards": {column: [chosen, rejected]}}``. It is called ``PATH.part`` until the last pair is scored.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from triune.data.pairs import Pair, digest, to_bytes
from triune.errors import UserError
from triune.output.atomic import write_bytes
from triune.progress import Advanced, Finished, Listener, Started, silent
from triune.scorers.devices import Devices

Rewards = Mapping[str, tuple[float, float]]
"""Of one pair: column -> (reward of chosen, reward of rejected)."""
ScoreBatch = Callable[[list[Pair]], Sequence[Rewards]]
Spread = Callable[[Sequence[list[Pair]], Callable[[list[Pair], Sequence[Rewards]], None]], None]
"""Scores batches on other machines, in any order, and calls back with each."""


def score_resumably(
    pairs: Sequence[Pair],
    score_batch: ScoreBatch | None,
    journal: Path | None,
    key: str,
    batch: int,
    listener: Listener = silent,
    spread: Spread | None = None,
) -> list[Pair]:
    """The pairs, in their order, with the rewards that ``score_batch`` gives them added to those they have.

    Batches hold pairs of like length, the longest first, so that too little memory shows at once. What is in a batch
    depends on the pairs alone, and a batch that was only half kept is scored again: a run that was killed and
    continued gives the same bits as one that was not.

    Args:
        pairs: with ids of their own.
        score_batch: the rewards of up to ``batch`` pairs, in their order; None if ``spread`` is given.
        journal: the file for the scores, made in ``PATH.part`` and renamed at the end; one that is finished already is
            read instead. None keeps nothing.
        key: all that decides the scores besides the pairs: the scorer, its models, its settings.
        batch: pairs scored at once.
        listener: is told of ``Started(unit="pairs")``, ``Advanced`` and ``Finished``.
        spread: scores all batches elsewhere.

    Raises:
        UserError: two pairs of one id, a reward that is not a finite number, a file with the scores of something else,
            or one that another process is writing.
    """
    if not pairs:
        return []
    ids = [pair.id for pair in pairs]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"Two pairs have the id {twice}, so their scores could not be told apart. Rename one of them.")
    ordered = sorted(pairs, key=_length, reverse=True)
    batches = [ordered[i : i + batch] for i in range(0, len(ordered), batch)]
    with _Journal(journal, digest(f"{key}\n{batch}\n".encode() + to_bytes(pairs))) as done:
        waiting = [group for group in batches if any(pair.id not in done.scores for pair in group)]
        left = sum(map(len, waiting))
        if waiting:
            listener(Started("score", total=len(pairs), done=len(pairs) - left, unit="pairs"))

            def add(group: list[Pair], rewards: Sequence[Rewards]) -> None:
                done.add(group, rewards)
                listener(Advanced(len(group)))

            if spread is not None:
                spread(waiting, add)
            else:
                assert score_batch is not None
                for group in waiting:
                    add(group, score_batch(group))
            listener(Finished("score"))
            done.finish(ids)
        return [replace(pair, rewards={**pair.rewards, **done.scores[pair.id]}) for pair in pairs]


def score_shared(
    pairs: Sequence[Pair],
    score_batch: ScoreBatch | None,
    *,
    folder: Path | None,
    name: str,
    key: str,
    batch: int,
    devices: Devices,
    listener: Listener = silent,
    spread: Spread | None = None,
) -> list[Pair]:
    """:func:`score_resumably` by all processes of an ``accelerate launch``: each scores its share and reads the others'.

    Args:
        folder: for one file of scores a process, made where it does not exist. None keeps nothing, which needs a
            single process.
        name: of the files.

    Raises:
        UserError: that of :func:`score_resumably`, or ``folder`` cannot be made.
    """
    processes = range(devices.processes)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot keep scores: {error.strerror}. Name another folder for them.") from None

    def share(process: int, listener: Listener = silent) -> list[Pair]:
        file = folder / f"{name}.{process + 1}of{len(processes)}.jsonl" if folder else None
        return score_resumably(pairs[process :: len(processes)], score_batch, file, key, batch, listener, spread)

    mine = share(devices.index, listener)
    devices.wait()
    shares = [mine if process == devices.index else share(process) for process in processes]
    by_id = {pair.id: pair for one in shares for pair in one}
    return [by_id[pair.id] for pair in pairs]


class _Journal:
    """The scores so far, in memory and, where there is a path, on the disk."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path, self.head = path, {"fingerprint": fingerprint}
        self.scores: dict[str, Rewards] = {}
        self._lines: IO[bytes] | None = None

    def __enter__(self) -> _Journal:
        if self.path is None or self._load(self.path):
            return self
        part = self.part
        try:
            self._lines = part.open("ab")
        except OSError as error:
            raise UserError(f"{part} cannot be written: {error.strerror}. Name another file for the scores.") from None
        try:
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._load(self.path):  # another process has finished it in the meantime
                part.unlink(missing_ok=True)
            elif self._load(part):
                self._lines.truncate(part.read_bytes().rfind(b"\n") + 1)  # a line cut short by the end of its process
            else:
                self._write([self.head])
        except OSError:
            self._lines.close()
            raise UserError(f"Another process is writing {part}. Wait for it, or name another file.") from None
        except UserError:
            self._lines.close()
            raise
        return self

    @property
    def part(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.part")

    def add(self, group: Sequence[Pair], rewards: Sequence[Rewards]) -> None:
        for pair, given in zip(group, rewards, strict=True):
            for column, sides in given.items():
                if not all(map(math.isfinite, sides)):
                    raise UserError(
                        f"pair {pair.id}: the scorer gave {column} the rewards {sides[0]} and {sides[1]}, which are "
                        "not numbers to compare. Score in float32, or leave this pair out."
                    )
            self.scores[pair.id] = given
        self._write([self._line(pair.id) for pair in group])

    def finish(self, ids: Sequence[str]) -> None:
        """The file in the order of the pairs, under its own name."""
        if self.path is not None:
            write_bytes(self.path, _bytes([self.head, *map(self._line, ids)]))
            self.part.unlink(missing_ok=True)  # another process may have finished the same scores

    def _line(self, pair: str) -> dict[str, Any]:
        return {"id": pair, "rewards": {column: list(v) for column, v in sorted(self.scores[pair].items())}}

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._lines is not None:
            self._lines.write(_bytes(rows))
            self._lines.flush()

    def _load(self, path: Path) -> bool:
        """Read what is there; whether there is anything."""
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        rows = [_row(line) for line in lines if line.endswith(b"\n")]
        if not rows:
            return False
        if rows[0] != self.head:
            raise UserError(
                f"{path} holds the scores of other pairs, or by another model. Name another file, or remove this one."
            )
        self.scores = {row["id"]: {c: (v[0], v[1]) for c, v in row["rewards"].items()} for row in rows[1:] if row}
        return True

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()  # which gives up the lock


def _length(pair: Pair) -> int:
    return len(pair.prompt_text) + max(len(pair.chosen), len(pair.rejected))


def _bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _row(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None  # after a power cut a line may hold anything: its batch is scored again
