"""What a model answered, row by row, and whether it still counts: the files that make a killed run continue.

``samples/gsm8k.jsonl`` holds a row a line, ``samples/gsm8k.json`` beside it what the answers depend on and the hash of the
rows. The rows are written first: without a record of their hash they do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from triune.output.atomic import write_bytes, write_text

Sample = dict[str, Any]
"""``id``, ``benchmark``, ``prompt`` (bare text, or a conversation's messages and then ``sent``, the text of the template),
``answer`` (or ``choices`` with their likelihoods), ``scores``, ``reference``, and where known ``category`` and ``finish``
(``stop`` or ``length``)."""


@dataclass(frozen=True)
class Answers:
    """A model's answers to the rows of a benchmark."""

    facts: Mapping[str, Any]
    """All that the answers depend on: other facts, other answers."""
    samples: Sequence[Sample]
    time: str
    """When the last row was answered or scored."""
    seconds: float
    """How long the model took for all of them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How they were made, besides: back end, batch, versions, hardware."""
    first_prompt: str = ""
    """Token ids of the first prompt, where they are known: a doubled BOS shows here."""

    def scores(self, metric: str) -> dict[str, float]:
        """Row id -> score; empty where a judge gives the scores."""
        return {s["id"]: float(s["scores"][metric]) for s in self.samples if metric in s["scores"]}

    def only(self, ids: Collection[str]) -> Answers:
        """The same with these rows alone."""
        return replace(self, samples=[s for s in self.samples if s["id"] in ids])


def write(folder: Path, benchmark: str, answers: Answers) -> None:
    """Write both files; each is whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in answers.samples).encode()
    record = {**asdict(answers), "samples": {"n": len(answers.samples), "sha256": hashlib.sha256(rows).hexdigest()}}
    write_bytes(folder / f"{benchmark}.jsonl", rows)
    write_text(folder / f"{benchmark}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path, benchmark: str) -> Answers | None:
    """What :func:`write` wrote; None where there is nothing, or rows without their record, or rows that were changed."""
    try:
        record = json.loads((folder / f"{benchmark}.json").read_text(encoding="utf-8"))
        rows = (folder / f"{benchmark}.jsonl").read_bytes()
    except (FileNotFoundError, ValueError):
        return None
    if hashlib.sha256(rows).hexdigest() != record["samples"]["sha256"]:
        return None
    return Answers(**{**record, "samples": [json.loads(line) for line in rows.decode().split("\n") if line]})


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first fact that differs, for people; empty where none does.

    >>> changed({"dtype": "float32", "task": 1}, {"dtype": "bfloat16", "task": 1})
    "dtype was 'float32' and is 'bfloat16'"
    """
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return f"{keys[0]} was {old.get(keys[0])!r} and is {new.get(keys[0])!r}" if keys else ""
