"""What a judge is shown: prompts and answers, as ``triune eval`` has logged them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triune.errors import UserError

FIELDS = ("id", "benchmark", "prompt", "answer")


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model answered: one text of each, or as many as there were turns."""

    id: str
    benchmark: str
    questions: tuple[str, ...]
    """What the user said, one text a turn."""
    answers: tuple[str, ...]
    references: tuple[str, ...] = ()
    """Good answers to compare with: none, or one a turn."""
    category: str = ""


def read_samples(path: Path) -> list[Sample]:
    """The samples of a JSONL file, one object a line.

    Each has ``id``, ``benchmark``, ``prompt`` (text, or messages with ``role`` and ``content``) and ``answer`` (text, or a
    list of one text a turn), and may have ``reference`` (as the answer) and ``category``. Other fields are passed over.

    Raises:
        UserError: the file cannot be read or is empty, a line is no sample, or an id stands there twice.
    """
    found: dict[str, Sample] = {}
    for number, row in read_rows(path):
        place = f"{path}:{number}"
        sample = _sample(row, place)
        if sample.id in found:
            raise UserError(f"{place}: the id {sample.id} stands here for the second time. Keep one line of each.")
        found[sample.id] = sample
    if not found:
        raise UserError(f"{path} holds no samples. Name the file that `triune eval` has written.")
    return list(found.values())


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, with the numbers of their lines.

    Raises:
        UserError: the file cannot be read, or a line is no object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Name a JSONL file.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: this line is not JSON ({error}). Write one object a line.") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a line must be an object, got {line.strip()[:40]!r}.")
        rows.append((number, row))
    return rows


def _sample(row: Mapping[str, Any], place: str) -> Sample:
    if missing := [name for name in FIELDS if row.get(name) is None]:
        raise UserError(f"{place}: this sample has no {missing[0]}. A sample has {', '.join(FIELDS)}.")
    answers = _texts(row["answer"], "answer", place)
    references = _texts(row.get("reference") or (), "reference", place)
    questions = _questions(row["prompt"], len(answers), place)
    if len(questions) != len(answers) or len(references) not in (0, len(answers)):
        counts = f"{len(questions)} turns of the user, {len(answers)} answers and {len(references)} references"
        raise UserError(f"{place}: got {counts}. Give one answer a turn, and as many references or none.")
    return Sample(str(row["id"]), str(row["benchmark"]), questions, answers, references, str(row.get("category") or ""))


def _texts(value: Any, field: str, place: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place}: {field} must be a text or a list of texts, got {str(value)[:40]!r}.")
    return tuple(texts)


def _questions(prompt: Any, turns: int, place: str) -> tuple[str, ...]:
    """The user's turns; of a conversation that was held before the one answer, all of it as one text."""
    if isinstance(prompt, str):
        return (prompt,)
    try:
        said = [(str(m["role"]), m["content"]) for m in prompt]
    except (TypeError, KeyError):
        said = []
    if not said or not all(isinstance(text, str) for _, text in said):
        raise UserError(f"{place}: prompt must be a text, or messages with role and content, got {str(prompt)[:40]!r}.")
    users = tuple(text for role, text in said if role == "user")
    if turns > 1 or len(said) == len(users) == 1:
        return users
    return ("\n\n".join(f"{role}: {text}" for role, text in said),)
