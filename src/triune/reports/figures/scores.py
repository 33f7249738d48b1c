"""A leaderboard's numbers with their intervals, and the differences from its reference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from triune.evals.leaderboard import Board, Cell, Line
from triune.reports.colours import KINDS
from triune.reports.figures.figure import Figure, Panel, Table, chart

PERCENT = "percent"


def colour_of(line: Line, experts: Mapping[str, str]) -> str:
    """A specialist's own colour, or that of its kind."""
    return experts.get(line.label, KINDS[line.model.kind])


def legend_of(lines: Sequence[Line], experts: Mapping[str, str]) -> dict[str, str]:
    """Kinds and specialists that are there -> colour."""
    named = {line.label if line.label in experts else line.model.kind: colour_of(line, experts) for line in lines}
    order = ["base", *experts, *KINDS]
    return dict(sorted(named.items(), key=lambda item: order.index(item[0])))


def shown(cell: Cell) -> str:
    """As a leaderboard shows it, with its interval: ≈ marks a proxy, † an incomplete mean."""
    found = cell.found
    marks = ("≈" if cell.proxies else "", "†" if found.missing else "")
    return f"{marks[0]}{100 * found.value:.1f}{marks[1]} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def caveat(board: Board) -> str:
    """What a reader must know of these numbers, in a sentence; empty where all are of whole benchmarks and official."""
    sliced, proxies = _reserves(board)
    told = [f"slices, of {' to '.join(map(str, dict.fromkeys((sliced[0], sliced[-1]))))} rows"] if sliced else []
    told += [f"≈ proxies ({', '.join(proxies)})"] if proxies else []
    return f"Among the numbers are {' and '.join(told)}: see the notes of the leaderboard." if told else ""


def mark(board: Board) -> str:
    """What stands in a figure of such numbers; the section's :func:`caveat` says the rest."""
    sliced, proxies = _reserves(board)
    told = " and ".join(["slices"] * bool(sliced) + ["≈ proxies"] * bool(proxies))
    return f" With {told}." if told else ""


def _reserves(board: Board) -> tuple[list[int], list[str]]:
    """The sizes of slices, smallest first, and the titles of benchmarks whose number is not the official one."""
    columns = [c for c in board.columns if c.level == "benchmark"]
    results = [r for c in columns for r in board.results(c)]
    full = {c.name: c.benchmarks[0].items for c in columns}
    sliced = sorted(r.n for r in results if r.n < full[r.benchmark])
    return sliced, [c.title for c in columns if any(r.proxy for r in board.results(c))]


SHARE: Mapping[str, Any] = {"domain": [-0.04, 1.04], "nice": False}
"""A scale for shares, with room for a point at either end."""


def dots(
    records: Sequence[Mapping[str, Any]],
    *,
    rows: Sequence[str],
    title: str,
    line_at: float | None = None,
    share: bool = False,
) -> Any:
    """Values with their intervals, a row each: records of ``name``, ``value``, ``low``, ``high``, ``colour``, ``text``."""
    import altair as alt

    y = alt.Y("name:N", sort=list(rows), title=None, axis=alt.Axis(labelLimit=240, grid=True, ticks=False))
    scale, axis = alt.Scale(zero=False, nice=True), alt.Axis(tickCount=5, labelFlush=False, format=".3~r")
    if share:
        scale, axis = SHARE, alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], labelFlush=False, format=".2f")
    colour = alt.Color("colour:N", scale=None)
    tip = ["name:N", "text:N"]
    line = (
        chart(records)
        .mark_rule(strokeWidth=2, opacity=0.55)
        .encode(x=alt.X("low:Q", title=title, scale=scale, axis=axis), x2="high:Q", y=y, color=colour, tooltip=tip)
    )
    point = (
        chart(records).mark_point(filled=True, size=60, opacity=1).encode(x="value:Q", y=y, color=colour, tooltip=tip)
    )
    layers = [line, point]
    if line_at is not None:
        layers.insert(
            0,
            alt.Chart(alt.Data(values=[{"x": line_at}]))
            .mark_rule(strokeDash=[4, 4], color="currentColor", opacity=0.6)
            .encode(x="x:Q"),
        )
    return alt.layer(*layers).properties(height=max(60, 20 * len(rows)))


def overall(key: str, board: Board, experts: Mapping[str, str]) -> Figure | None:
    """The mean of the three Hs, and each H: a panel each, models in the order of the ranks."""
    columns = [c for c in board.columns if c.level in ("overall", "h")]
    if not columns:
        return None
    order = [line.label for line in board.lines]
    panels = []
    for column in columns:
        there = [(line, line.cells[column.name]) for line in board.lines if column.name in line.cells]
        records = [
            {
                "name": line.label,
                "value": 100 * cell.found.value,
                "low": 100 * cell.found.low,
                "high": 100 * cell.found.high,
                "colour": colour_of(line, experts),
                "text": shown(cell),
            }
            for line, cell in there
        ]
        panels.append(Panel(column.title, dots(records, rows=order, title=PERCENT)))
    first = columns[0]
    rows = tuple(
        (line.label, line.model.kind, *(shown(line.cells[c.name]) if c.name in line.cells else None for c in columns))
        for line in board.lines
    )
    see = "Means with their 95% intervals; all count higher as better, and models stand in the order of their rank."
    if first.level == "overall":
        see += _overlap([line.cells[first.name] for line in board.lines if line.rank is not None])
    return Figure(
        f"{key}-scores",
        "Scores with their intervals",
        see + mark(board),
        panels,
        Table("Means in percent, with 95% intervals", ("model", "kind", *(c.title for c in columns)), rows),
        legend=legend_of(board.lines, experts),
        columns=2,
    )


def _overlap(ranked: Sequence[Cell]) -> str:
    """How sure the first place is, in a sentence; empty where nothing is behind it. Models without a rank do not count."""
    if len(ranked) < 2:
        return ""
    others = len(ranked) - 1
    near = sum(cell.found.high >= ranked[0].found.low for cell in ranked[1:])
    if others == 1:
        return f" The interval of the 1 other model {'overlaps' if near else 'does not overlap'} that of the first."
    if near in (0, others):
        return f" The intervals of {'all' if near else 'none of the'} {others} others overlap that of the first."
    of = "The interval of 1" if near == 1 else f"The intervals of {near}"
    return f" {of} of the {others} others {'overlaps' if near == 1 else 'overlap'} that of the first."


def differences(key: str, board: Board, experts: Mapping[str, str]) -> Figure | None:
    """How much better or worse than the reference, on the same rows: a panel for each H and for all three."""
    columns = [c for c in board.columns if c.level in ("overall", "h")]
    others = [line for line in board.lines if line.label != board.reference]
    panels, rows, sure, made = [], [], 0, 0
    for column in columns:
        records = []
        for line in others:
            cell = line.cells.get(column.name)
            if cell is None or cell.comparison is None:
                continue
            versus = cell.comparison
            made, sure = made + 1, sure + (cell.sign != 0)
            text = (
                f"{100 * versus.difference:+.1f} [{100 * versus.low:+.1f}, {100 * versus.high:+.1f}], p = {cell.p:.2g}"
            )
            rows.append((column.title, line.label, text))
            records.append(
                {
                    "name": line.label,
                    "value": 100 * versus.difference,
                    "low": 100 * versus.low,
                    "high": 100 * versus.high,
                    "colour": colour_of(line, experts),
                    "text": text,
                }
            )
        if records:
            plot = dots(records, rows=[r.label for r in others], title="points", line_at=0)
            panels.append(Panel(column.title, plot))
    if not panels:
        return None
    count = f"{sure} of these {made} differences {'is' if sure == 1 else 'are'}"
    if made == 1:
        count = f"the difference is{'' if sure else ' not'}"
    return Figure(
        f"{key}-differences",
        f"Difference from {board.reference}",
        f"Percentage points on the rows that both models answered, with 95% intervals; right of 0 is better than "
        f"{board.reference}. After Holm's correction {count} more than chance explains." + mark(board),
        panels,
        Table(
            f"Differences from {board.reference}", ("mean of", "model", "points, interval, corrected p"), tuple(rows)
        ),
        legend=legend_of(others, experts),
        columns=2,
    )


def settings(key: str, board: Board, told: str) -> Figure | None:
    """What each setting of a method scored where settings are chosen: models named ``method[key=value]``.

    Args:
        told: the split that the rest of the report tells of.
    """
    import altair as alt

    columns = {c.name: c for c in board.columns if c.level == "overall"} or {
        c.name: c for c in board.columns if c.level == "h"
    }
    if not columns:
        return None
    column = next(iter(columns.values()))
    records: list[dict[str, Any]] = []
    for line in board.lines:
        named, cell = re.fullmatch(r"(.+?)\[(.+)\]", line.label), line.cells.get(column.name)
        if named and cell:
            found = cell.found
            values = {"value": 100 * found.value, "low": 100 * found.low, "high": 100 * found.high}
            records.append({"method": named[1], "setting": named[2], "text": shown(cell), **values})
    methods = sorted({r["method"] for r in records})
    if not records:
        return None
    best = {m: max((r for r in records if r["method"] == m), key=lambda r: r["value"]) for m in methods}
    names = sorted({r["setting"] for r in records})
    for r in records:
        r["chosen"] = "best" if r is best[r["method"]] else "other"
    y = alt.Y("setting:N", sort=names, title=None, axis=alt.Axis(labelLimit=200, grid=True, ticks=False))
    scale = alt.Scale(nice=True, domain=[min(r["low"] for r in records), max(r["high"] for r in records)])
    panels = []
    for method in methods:
        own = [r for r in records if r["method"] == method]
        tip = ["setting:N", "text:N"]
        line = (
            chart(own)
            .mark_rule(strokeWidth=2, opacity=0.55, color=KINDS["merge"])
            .encode(x=alt.X("low:Q", title=f"{column.title}, {PERCENT}", scale=scale), x2="high:Q", y=y, tooltip=tip)
        )
        filled = alt.condition("datum.chosen == 'best'", alt.value(KINDS["merge"]), alt.value("transparent"))
        point = (
            chart(own)
            .mark_point(size=70, opacity=1, stroke=KINDS["merge"], strokeWidth=2)
            .encode(x="value:Q", y=y, fill=filled, tooltip=tip)
        )
        panels.append(Panel(method, alt.layer(line, point).properties(height=26 * len(own) + 10)))
    rows = tuple((r["method"], r["setting"], r["text"], r["chosen"]) for r in records)
    return Figure(
        f"{key}-settings",
        "What each setting scored",
        f"{column.title} on the {board.split} half of the rows, with 95% intervals; the filled point is the best of "
        "each method."
        + " The numbers told elsewhere are of the other half, which no choice has seen."
        * (told == "report"),
        panels,
        Table(f"Settings on the {board.split} half", ("method", "setting", f"{column.title}, percent", "is"), rows),
        columns=3,
    )
