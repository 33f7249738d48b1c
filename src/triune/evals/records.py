"""A leaderboard for programs: one record for each number, as CSV or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from triune.evals.leaderboard import Board, Cell, Column, Line
from triune.evals.notes import notes


@dataclass(frozen=True, kw_only=True)
class Record:
    """A number of one model. Means, balance and differences count higher as better, a benchmark its own way."""

    model: str
    kind: str
    fingerprint: str
    rank: int | None
    level: str
    """``benchmark``, ``dimension``, ``h``, ``overall``, or ``retention`` of what a specialist has."""
    name: str
    value: float | None
    """None where it was not measured."""
    low: float | None = None
    high: float | None = None
    stderr: float | None = None
    n: int | None = None
    full_n: int | None = None
    """Rows of the full set, of a mean those of all its benchmarks; n is fewer where a slice was measured."""
    higher_is_better: bool = True
    proxy: str = ""
    """In what way it is not the official number; of a mean, the benchmarks of which that is so."""
    missing: str = ""
    """Benchmarks that a mean goes without."""
    chance: float | None = None
    normalised: float | None = None
    """From guessing (0) to the best specialist (1)."""
    better_by: float | None = None
    """Than the reference, on the rows that both have."""
    better_low: float | None = None
    better_high: float | None = None
    p: float | None = None
    """Holm-corrected."""
    test: str = ""
    paired_n: int | None = None
    metric: str = ""
    scorer: str = ""
    revision: str = ""
    prompt_version: str = ""
    official_metric: str = ""
    lowest: str = ""
    """Of the balance: which H it is."""


def records(board: Board) -> list[Record]:
    """All numbers of the board, model by model in the order of the ranks."""
    return [record for line in board.lines for record in _of(line, board)]


def _of(line: Line, board: Board) -> Iterator[Record]:
    who: dict[str, Any] = {"model": line.label, "kind": line.model.kind, "fingerprint": line.model.fingerprint}
    who["rank"] = line.rank
    columns = {column.name: column for column in board.columns}
    for column in board.columns:
        what = {**who, "level": column.level, "name": column.name, "higher_is_better": column.higher_is_better}
        if column.name not in line.cells:
            yield Record(**what, value=None)
            continue
        cell = line.cells[column.name]
        found, versus, result = cell.found, cell.comparison, cell.result
        what |= {"value": found.value, "low": found.low, "high": found.high, "stderr": found.stderr}
        what |= {**_counted(cell, column), "normalised": cell.normalised}
        if versus:
            what |= {"better_by": versus.difference, "better_low": versus.low, "better_high": versus.high}
            what |= {"p": cell.p, "test": versus.test, "paired_n": versus.n}
        if result:
            same = ("proxy", "chance", "metric", "scorer", "revision", "prompt_version")
            what |= {name: getattr(result, name) for name in same}
            (benchmark,) = column.benchmarks
            what |= {"official_metric": benchmark.official_metric}
        yield Record(**what)
    if line.balance:
        h, cell = line.balance
        what = {**_counted(cell, columns[h]), "lowest": h}
        yield Record(**who, **what, level="overall", name="balance", value=cell.found.value)
    for specialist, kept in line.retention.items():
        specialty = board.specialty(specialist)
        what = {} if kept is None else _counted(line.cells[specialty], columns[specialty])
        yield Record(**who, **what, level="retention", name=specialist, value=kept)


def _counted(cell: Cell, column: Column) -> dict[str, Any]:
    """How much was counted, and what of it is not the official number."""
    full_n = sum(b.items for b in column.benchmarks if b.name not in cell.found.missing)
    return {
        "n": cell.found.n,
        "full_n": full_n,
        "missing": ", ".join(cell.found.missing),
        "proxy": ", ".join(cell.proxies),
    }


def as_csv(board: Board) -> str:
    """The records, a line each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[f.name for f in fields(Record)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, records(board)))
    return text.getvalue()


def as_json(board: Board) -> dict[str, Any]:
    """The records, and what holds for all of them."""
    return {
        "group": board.group,
        "split": board.split,
        "reference": board.reference,
        "scores": [asdict(record) for record in records(board)],
        "notes": notes(board),
    }
