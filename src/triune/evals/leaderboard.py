"""From results to a leaderboard: which numbers stand beside each other, what is averaged, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from triune.errors import UserError, did_you_mean
from triune.evals.benchmark import BENCHMARKS, DIMENSIONS, GROUPS, HS, Benchmark, members
from triune.evals.result import Model, Result
from triune.evals.statistics import (
    Comparison,
    Estimate,
    Paired,
    compare,
    holm,
    mean,
    normalised,
    oriented,
    paired,
    ranks,
    retention,
    weights,
)

ALPHA = 0.05


@dataclass(frozen=True)
class Column:
    """A benchmark, or benchmarks averaged."""

    name: str
    title: str
    level: str
    """``benchmark``, ``dimension``, ``h`` or ``overall``."""
    benchmarks: tuple[Benchmark, ...]
    higher_is_better: bool = True
    rows: str = ""
    """Of a benchmark: n, of how many where it is a slice, and the scorer."""


@dataclass(frozen=True)
class Cell:
    """A model's number in a column."""

    found: Estimate
    """In the column's own direction."""
    proxies: tuple[str, ...]
    """Those of its benchmarks whose number is not the official one."""
    result: Result | None = None
    """Of a benchmark."""
    normalised: float | None = None
    """From guessing (0) to the best specialist (1); of a mean, from the mean of its benchmarks' chances."""
    comparison: Comparison | None = None
    """With the reference."""
    p: float | None = None
    """Of the comparison, corrected for all comparisons of the table."""
    place: int = 0
    """1 for the best of the column and 2 for the second; 0 for all others, and where a mean is not complete."""

    @property
    def sign(self) -> int:
        """1 where the model is better than the reference, -1 where it is worse, 0 where that may be chance."""
        if self.comparison is None or self.p is None or self.p >= ALPHA:
            return 0
        return 1 if self.comparison.difference > 0 else -1


@dataclass(frozen=True)
class Line:
    """A model."""

    label: str
    model: Model
    cells: Mapping[str, Cell]
    """By the name of the column; a column that is not here was not measured."""
    rank: int | None
    retention: Mapping[str, float | None]
    """By specialist: how much of its score on its own dimension this model keeps."""

    @property
    def balance(self) -> tuple[str, Cell] | None:
        """The lowest of the three Hs."""
        hs = {h: self.cells[h] for h in HS if h in self.cells}
        if len(hs) < len(HS):
            return None
        worst = min(hs, key=lambda h: hs[h].found.value)
        return worst, hs[worst]


@dataclass(frozen=True)
class Board:
    """A leaderboard, for :mod:`triune.evals.tables` to draw."""

    group: str
    split: str
    reference: str | None
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    left_out: tuple[tuple[str, Result], ...]
    """(label, result) of what was measured in another way than its column."""
    unmeasured: tuple[Benchmark, ...]
    """Of the group, for every model."""
    outside: tuple[str, ...]
    """Benchmarks that were measured and are not of the group."""
    other_half: tuple[Benchmark, ...] = ()
    """Those of the unmeasured that were measured, but on no row of this half."""

    def results(self, column: Column) -> list[Result]:
        """The results that a benchmark's column shows."""
        cells = [line.cells[column.name] for line in self.lines if column.name in line.cells]
        return [cell.result for cell in cells if cell.result]

    def specialty(self, specialist: str) -> str:
        """The column of what a specialist was trained for, whose cells its retention is made of."""
        return next(line.model.specialty for line in self.lines if line.label == specialist)


def leaderboard(
    results: Iterable[Result], *, group: str | None = None, split: str = "report", reference: str | None = None
) -> Board:
    """Compare the models that the results are of.

    Numbers stand in one column only if they were measured in one way: by the same metric, scorer, data and prompt. Of
    several ways the one that most models share is taken, if as many do the official one, or a judge before phrases, and
    the notes name what was left out. A mean says which benchmarks it goes without, and ranks nothing then.

    Args:
        results: of one store or of several; of two results of one key the later counts.
        group: what is averaged; the group of which most is measured if not given.
        split: which results count.
        reference: the model, by name or fingerprint, that all others are compared with on the same rows.

    Raises:
        UserError: no result of that split or group, or no such reference.
    """
    results = list(results)
    kept = _newest(results, split)
    models = {r.model.fingerprint: r.model for r in sorted(kept, key=lambda r: (r.when, r.key))}
    labels = _labels(models)
    name = group or _most_measured(kept)
    benchmarks = members(name)
    table, left_out = _one_way_each(kept, benchmarks)
    if not table:
        there = ", ".join(sorted({r.benchmark for r in kept}))
        raise UserError(f"No benchmark of {name} was measured; there are {there}. Name another --group.")
    models = {f: m for f, m in models.items() if any(f in results for results in table.values())}
    columns = _columns(table)
    scores = {
        f: {b: oriented(r[f].estimate, r[f].higher_is_better) for b, r in table.items() if f in r} for f in models
    }
    cells = {f: _cells(f, columns, table, scores) for f in models}
    against = None if reference is None else _find(reference, {f: labels[f] for f in models})
    if against is not None:
        _compare(cells, against, columns, table)
    _give_places(cells, columns)
    overall = {f: c["3H"].found for f, c in cells.items() if "3H" in c and not c["3H"].found.missing}
    rank = ranks({f: overall[f].value if f in overall else None for f in models})
    experts = {labels[f]: f for f, m in models.items() if m.specialty}
    lines = [Line(labels[f], m, cells[f], rank[f], _kept(f, experts, models, table, scores)) for f, m in models.items()]
    lines.sort(key=lambda line: (line.rank or math.inf, line.label))
    others = tuple((labels[r.model.fingerprint], r) for r in left_out)
    unmeasured = tuple(b for b in benchmarks if b.name not in table)
    outside = tuple(sorted({r.benchmark for r in kept} - {b.name for b in benchmarks}))
    versus = None if against is None else labels[against]
    whole = {r.benchmark for r in results if r.split == "all"}
    other_half = tuple(b for b in unmeasured if b.name in whole)
    return Board(name, split, versus, columns, tuple(lines), others, unmeasured, outside, other_half)


def _newest(results: Iterable[Result], split: str) -> list[Result]:
    newest: dict[object, Result] = {}
    for r in results:
        if r.key not in newest or newest[r.key].when <= r.when:
            newest[r.key] = r
    kept = [r for r in newest.values() if r.split == split]
    if not kept:
        there = ", ".join(sorted({r.split for r in newest.values()}))
        raise UserError(
            f"There are no results of split {split}; there are of {there}. Name it with --split."
            if there
            else "The stores are empty. Measure a model first."
        )
    return kept


def _labels(models: Mapping[str, Model]) -> dict[str, str]:
    """Fingerprint -> name, with as much of the fingerprint as tells models of one name apart."""
    labels = {}
    for fingerprint, model in models.items():
        same = [f for f, m in models.items() if m.name == model.name]
        short = {f[:8] for f in same}
        mark = fingerprint[:8] if len(short) == len(same) else fingerprint
        labels[fingerprint] = model.name if len(same) == 1 else f"{model.name} ({mark})"
    return labels


def _most_measured(results: Sequence[Result]) -> str:
    there = {r.benchmark for r in results}
    return max(GROUPS, key=lambda g: len(there & set(GROUPS[g])) / len(GROUPS[g]))


def _one_way_each(
    results: Sequence[Result], benchmarks: Sequence[Benchmark]
) -> tuple[dict[str, dict[str, Result]], list[Result]]:
    """Benchmark -> fingerprint -> its result, all measured in one way; and the results measured in another."""
    table: dict[str, dict[str, Result]] = {}
    left_out: list[Result] = []
    for b in benchmarks:
        ways: dict[tuple[str, ...], list[Result]] = {}
        for r in results:
            if r.benchmark == b.name:
                way = (r.metric, r.scorer, r.revision, r.prompt_version, str(r.higher_is_better))
                ways.setdefault(way, []).append(r)
        if not ways:
            continue
        best = max(sorted(ways), key=lambda w: (len(ways[w]), not any(r.proxy for r in ways[w]), w[1] != "phrases"))
        table[b.name] = {r.model.fingerprint: r for r in ways.pop(best)}
        left_out += [r for way in sorted(ways) for r in ways[way]]
    return table, left_out


def _measured(table: Mapping[str, object]) -> tuple[Benchmark, ...]:
    return tuple(BENCHMARKS[name] for name in table)


def _columns(table: Mapping[str, Mapping[str, Result]]) -> tuple[Column, ...]:
    measured = _measured(table)
    columns = []
    if {b.h for b in measured} == set(HS):
        columns.append(Column("3H", "3H", "overall", measured))
    levels: list[tuple[str, Iterable[str], Callable[[Benchmark], str]]] = [
        ("h", HS, lambda b: b.h),
        ("dimension", DIMENSIONS, lambda b: b.dimension),
    ]
    for level, names, part in levels:
        for name in names:
            if own := tuple(b for b in measured if part(b) == name):
                columns.append(Column(name, name, level, own))
    for b in measured:
        results = list(table[b.name].values())
        counts = sorted({r.n for r in results})
        rows = f"n = {' to '.join(f'{n:,}' for n in dict.fromkeys((counts[0], counts[-1])))}"
        rows += f" of {b.items:,}" * (counts[0] < b.items) + f", {results[0].scorer}"
        columns.append(Column(b.name, b.title, "benchmark", (b,), results[0].higher_is_better, rows))
    return tuple(columns)


def _cells(
    model: str,
    columns: Sequence[Column],
    table: Mapping[str, Mapping[str, Result]],
    scores: Mapping[str, Mapping[str, Estimate]],
) -> dict[str, Cell]:
    cells = {}
    for column in columns:
        found = mean(scores[model], column.benchmarks)
        if found is None:
            continue
        used = [table[b.name][model] for b in column.benchmarks if model in table[b.name]]
        cell = Cell(found, tuple(r.benchmark for r in used if r.proxy))
        if column.level == "benchmark":
            (result,) = used
            cell = replace(cell, found=result.estimate, result=result)
        own = None if found.missing else normalised(found.value, *_limits(column, table, scores))
        cells[column.name] = replace(cell, normalised=own)
    return cells


def _limits(
    column: Column, table: Mapping[str, Mapping[str, Result]], scores: Mapping[str, Mapping[str, Estimate]]
) -> tuple[float, float]:
    """What guessing gives and what the best specialist has in a column, higher being better."""
    chance = 0.0
    for name, weight in weights(column.benchmarks).items():
        result = next(iter(table[name].values()))
        chance += weight * (result.chance if result.higher_is_better else 1 - result.chance)
    specialists = {f for b in column.benchmarks for f, r in table[b.name].items() if r.model.kind == "specialist"}
    means = [mean(scores[f], column.benchmarks) for f in specialists]
    return chance, max((m.value for m in means if m and not m.missing), default=chance)


def _kept(
    model: str,
    experts: Mapping[str, str],
    models: Mapping[str, Model],
    table: Mapping[str, object],
    scores: Mapping[str, Mapping[str, Estimate]],
) -> dict[str, float | None]:
    """What the model keeps of each specialist, these in the order of the Hs."""
    order = [*HS, *DIMENSIONS]
    found = {}
    for label, expert in sorted(experts.items(), key=lambda e: (order.index(models[e[1]].specialty), e[0])):
        own = [b for b in _measured(table) if models[expert].specialty in (b.h, b.dimension)]
        found[label] = retention(mean(scores[model], own), mean(scores[expert], own))
    return found


def _compare(
    cells: dict[str, dict[str, Cell]],
    reference: str,
    columns: Sequence[Column],
    table: Mapping[str, Mapping[str, Result]],
) -> None:
    """Give each cell its comparison with the reference, and all of them Holm's correction.

    Columns of the same benchmarks, as where an H has one dimension, are one comparison.
    """
    made: dict[tuple[str, tuple[Benchmark, ...]], Comparison] = {}
    for model in [m for m in cells if m != reference]:
        pairs: dict[str, Paired] = {}
        for name, results in table.items():
            if model in results and reference in results:
                ours, theirs = results[model], results[reference]
                if pair := paired(ours.scores, theirs.scores, ours.higher_is_better, name):
                    pairs[name] = pair
        for averaged in dict.fromkeys(c.benchmarks for c in columns):
            if all(b.name in pairs for b in averaged):
                made[model, averaged] = compare([(w, pairs[name]) for name, w in weights(averaged).items()])
    corrected = dict(zip(made, holm([comparison.p for comparison in made.values()]), strict=True))
    for model, own in cells.items():
        for column in columns:
            key = model, column.benchmarks
            if key in made:
                own[column.name] = replace(own[column.name], comparison=made[key], p=corrected[key])


def _give_places(cells: dict[str, dict[str, Cell]], columns: Sequence[Column]) -> None:
    """Mark the best and the second of each column, where there is anything to be better than."""
    for column in columns:
        values = {
            model: round(oriented(own[column.name].found, column.higher_is_better).value, 12)
            for model, own in cells.items()
            if column.name in own and not own[column.name].found.missing
        }
        best = sorted(set(values.values()), reverse=True)[:2] if len(values) > 1 else []
        for model, value in values.items():
            if value in best:
                cells[model][column.name] = replace(cells[model][column.name], place=1 + best.index(value))


def _find(reference: str, labels: Mapping[str, str]) -> str:
    found = [f for f, label in labels.items() if reference in (f, label)]
    if len(found) != 1:
        hint = did_you_mean(reference, labels.values())
        raise UserError(
            f"There is no one model {reference!r} to compare with, only {', '.join(labels.values())}.{hint}"
        )
    return found[0]
