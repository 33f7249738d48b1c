"""The rows of a benchmark: from a folder, from the hub, or the small set of our own that comes with triune.

A folder holds one JSON Lines file for each name in :data:`COLUMNS`. Where no folder is named, ``TRIUNE_DATA`` names it
(``hub`` is the Hugging Face hub); where that is not set either, rows come from the built-in mini set, which tries the
machine and not the model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from triune.errors import UserError, did_you_mean

Row = dict[str, Any]
Half = Literal["tune", "report"]

MINI = Path(__file__).parent / "mini"
HUB = "hub"


class Rule(NamedTuple):
    """What a column holds."""

    what: str
    holds: Callable[[Any], bool]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _labelled(value: Any) -> bool:
    if not isinstance(value, dict) or not _texts(value.get("choices")):
        return False
    labels = value.get("labels")
    return isinstance(labels, list) and len(labels) == len(value["choices"]) and {*labels} == {0, 1}


def _one_of(*words: str) -> Rule:
    return Rule(f"one of {', '.join(words)}", lambda v: v in words)


TEXT = Rule("text that is not empty", lambda v: isinstance(v, str) and bool(v.strip()))
ANY_TEXT = Rule("text", lambda v: isinstance(v, str))
TEXTS = Rule("a list of texts", _texts)
FLAG = Rule("true or false", lambda v: isinstance(v, bool))
SOLUTION = Rule("a solution that ends with #### and a number", lambda v: isinstance(v, str) and "#### " in v)
CHOICES = Rule("a list of two or more texts", lambda v: _texts(v) and len(v) > 1)
FOUR = Rule("a list of four texts", lambda v: _texts(v) and len(v) == 4)
INDEX = Rule("the index of a choice, from 0", lambda v: type(v) is int and v >= 0)
LABELLED = Rule("choices with as many labels, of which some are 1 and some 0", _labelled)
CATEGORY = _one_of("helpful", "honest", "harmless", "other")
TURNS = Rule("a list of two user turns", lambda v: _texts(v) and len(v) == 2)

_MATHS = {"question": TEXT, "answer": SOLUTION}
_MBPP = {"text": TEXT, "code": TEXT, "test_list": TEXTS, "test_setup_code": ANY_TEXT}
_MMLU = {"subject": TEXT, "question": TEXT, "choices": FOUR, "answer": INDEX}
_ARC = {"question": TEXT, "choices": CHOICES, "answer": INDEX}

COLUMNS: Mapping[str, Mapping[str, Rule]] = {
    "gsm8k": _MATHS,
    "gsm8k_fewshot": _MATHS,
    "humaneval": {"prompt": TEXT, "entry_point": TEXT, "canonical_solution": TEXT, "test": TEXT},
    "mbpp": _MBPP,
    "mbpp_fewshot": _MBPP,
    "mmlu": _MMLU,
    "mmlu_dev": _MMLU,
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "truthfulqa": {"question": TEXT, "mc1": LABELLED, "mc2": LABELLED},
    "selfaware": {"question": TEXT, "answerable": FLAG},
    "hhh_alignment": {"category": CATEGORY, "prompt": TEXT, "chosen": TEXT, "rejected": TEXT},
    "xstest": {"prompt": TEXT, "label": _one_of("safe", "unsafe")},
    "or_bench_hard": {"prompt": TEXT},
    "salad": {"prompt": TEXT},
    "instruct_open": {"prompt": TEXT},
    "halueval_wild": {"query": TEXT, "reference": TEXT},
    "mt_bench": {"turns": TURNS, "reference": TEXTS},
}
"""File -> the columns that its rows must have beside ``id``; more are kept as they are."""

LEFT_OUT = {"halueval_wild": ("query_type", "other types")}
"""File -> a column, and the value of rows that the authors of the benchmark do not count."""


def source(data: str | Path | None = None) -> Path | None:
    """The folder that rows come from; None if that is the hub."""
    chosen = str(data or os.environ.get("TRIUNE_DATA") or MINI)
    return None if chosen == HUB else Path(chosen).expanduser()


def rows(name: str, data: str | Path | None = None) -> list[Row]:
    """The rows of a file, in its order.

    Args:
        name: one of :data:`COLUMNS`.
        data: a folder, or ``hub``; see above what holds without it.

    Raises:
        UserError: the file is missing, cannot be read, or has a row that breaks a rule.
    """
    if name not in COLUMNS:
        raise UserError(f"There are no rows {name!r}, but {', '.join(COLUMNS)}.{did_you_mean(name, COLUMNS)}")
    folder = source(data)
    if folder is None:
        from triune.evals import hub

        lines = hub.rows(name)
    else:
        lines = _read(folder / f"{name}.jsonl")
    column, value = LEFT_OUT.get(name, ("id", None))
    return [row for row in _checked(name, lines) if row.get(column) != value]


def selected(
    name: str, data: str | Path | None = None, *, where: Mapping[str, Any] | None = None, half: Half | None = None
) -> list[Row]:
    """The rows with these values in these columns, of this half, in an order of chance that is always the same.

    The first n of them are a fair sample, and stay the first n in a larger n: files are often sorted by kind.

    Raises:
        UserError: there are none, or as :func:`rows` does.
    """
    if half not in (None, "tune", "report"):
        raise UserError(f"half is tune or report, got {half!r}. Leave it out for all rows.")
    wanted = (where or {}).items()
    found = [row for row in rows(name, data) if all(row[c] == value for c, value in wanted)]
    found = [row for row in found if half in (None, half_of(row["id"]))]
    if not found:
        what = ", ".join([*(f"{c} {value}" for c, value in wanted), *([f"half {half}"] if half else [])])
        raise UserError(f"{source(data) or HUB}: {name} has no rows with {what}. Give more rows, or leave that out.")
    return sorted(found, key=lambda row: _digest("order", row["id"]))


def half_of(row_id: str) -> Half:
    """The half that a row is in, wherever it is used: settings are chosen on one, numbers are told of the other.

    >>> [half_of(f"gsm8k-test-{i}") for i in (2, 15, 19)]
    ['tune', 'report', 'tune']
    """
    return "report" if _digest("half", row_id)[0] % 2 else "tune"


def _digest(what: str, row_id: str) -> bytes:
    return hashlib.sha256(f"{what}:{row_id}".encode()).digest()


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and content of each line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path}: this file of benchmark rows is missing. Name the folder that has it (the setting data, or "
            f"TRIUNE_DATA), {HUB} to fetch the rows, or none of these for the built-in smoke test."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}. Check the file, or fetch it again.") from None
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: texts hold rarer line breaks
        if line.strip():
            place = f"{path}:{number}"
            try:
                yield place, json.loads(line)
            except ValueError as error:
                raise UserError(f"{place}: this line is no JSON: {error}. Write one object a line.") from None


def _checked(name: str, lines: Iterator[tuple[str, Any]]) -> list[Row]:
    seen: dict[str, str] = {}
    found = []
    for place, row in lines:
        if not isinstance(row, dict):
            raise UserError(f"{place}: a row must be an object with columns, got {str(row)[:40]!r}.")
        for column, rule in {"id": TEXT, **COLUMNS[name]}.items():
            if column not in row:
                raise UserError(f"{place}: the column {column} is missing; a row of {name} needs {_needed(name)}.")
            if not rule.holds(row[column]):
                raise UserError(f"{place}: {column} must be {rule.what}, got {str(row[column])[:60]!r}.")
        if "choices" in COLUMNS[name] and row["answer"] >= len(row["choices"]):
            raise UserError(
                f"{place}: answer is {row['answer']}, counted from 0, but there are {len(row['choices'])} choices."
            )
        if row["id"] in seen:
            raise UserError(f"{place}: the id {row['id']!r} is that of {seen[row['id']]}, too. Give each row its own.")
        seen[row["id"]] = place
        found.append(row)
    if not found:
        raise UserError(f"{name}: there are no rows. Check the file, or fetch it again.")
    return found


def _needed(name: str) -> str:
    return ", ".join(["id", *COLUMNS[name]])
