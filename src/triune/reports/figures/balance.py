"""The balance of the three Hs: radar, ternary plot, Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from triune.evals.benchmark import HS
from triune.evals.leaderboard import Board, Line
from triune.reports.figures.figure import Figure, Panel, Table, chart
from triune.reports.figures.scores import PERCENT, colour_of, legend_of, mark, shown

SHAPES = {"base": "cross", "specialist": "circle", "merge": "diamond", "mixture": "square", "other": "triangle-up"}
SIDE = 330
"""Pixels of a radar."""
WIDE = 620
"""Pixels of the ternary plot, with its labels: as many for each unit across as up."""


def complete(board: Board) -> list[Line]:
    """Models of which all three Hs were measured, in the order of the ranks."""
    return [line for line in board.lines if all(h in line.cells for h in HS)]


def named(lines: Sequence[Line]) -> list[Line]:
    """The few that figures name: the base, the specialists, and of the ranking the first merge, mixture, and others."""
    found = [line for line in lines if line.model.kind in ("base", "specialist")]
    for kind, few in (("merge", 1), ("mixture", 1), ("other", 4)):
        found += [line for line in lines if line.model.kind == kind][:few]
    return found


def _table(lines: Iterable[Line]) -> Table:
    rows = tuple((line.label, line.model.kind, *(shown(line.cells[h]) for h in HS)) for line in lines)
    return Table("The three Hs in percent, with 95% intervals", ("model", "kind", *HS), rows)


# --- radar --------------------------------------------------------------------------------------------------------


def radar(key: str, board: Board, experts: Mapping[str, str]) -> Figure | None:
    """Three axes; the base with the specialists, and the base with the best of each other kind."""
    lines = sorted(
        named(complete(board)), key=lambda line: list(legend_of(board.lines, experts)).index(_kind(line, experts))
    )
    if not lines:
        return None
    base = [line for line in lines if line.model.kind == "base"]
    groups = {
        "specialists": [line for line in lines if line.model.kind == "specialist"],
        "the best merge and mixture": [line for line in lines if line.model.kind in ("merge", "mixture")],
        "others": [line for line in lines if line.model.kind == "other"],
    }
    top = 10 * max(1, math.ceil(10 * max(line.cells[h].found.value for line in lines for h in HS)))
    there = {name: group for name, group in groups.items() if group} or {"": []}
    panels = [Panel(name, _radar([*base, *group], top, experts), True) for name, group in there.items()]
    return Figure(
        f"{key}-radar",
        "Helpful, honest, harmless",
        f"Percent from the centre outwards, rings every {_ring(top)}.{_lowest(board)} Whether models "
        "differ is in the figures with intervals." + mark(board),
        panels,
        _table(lines),
        legend={line.label: colour_of(line, experts) for line in lines},
        columns=2,
    )


def _lowest(board: Board) -> str:
    """On which H models are lowest, in a sentence; empty where there are not several to say it of."""
    there = complete(board)
    if len(there) < 2:
        return ""
    worst = {line.balance[0] for line in there if line.balance}
    if len(worst) > 1:
        return " Models differ in where they are lowest."
    who = "Every model" if len(there) == len(board.lines) else f"Each of the {len(there)} models that have all three"
    return f" {who} is lowest on {worst.pop()}."


def _kind(line: Line, experts: Mapping[str, str]) -> str:
    return line.label if line.label in experts else line.model.kind


def _ring(top: float) -> int:
    return 10 if top <= 50 else 20


def _radar(lines: Sequence[Line], top: float, experts: Mapping[str, str]) -> Any:
    import altair as alt

    angles = [math.pi / 2 - 2 * math.pi * i / len(HS) for i in range(len(HS))]

    def at(radius: float, i: int) -> dict[str, float]:
        angle = angles[i % len(HS)]
        return {"x": radius / top * math.cos(angle), "y": radius / top * math.sin(angle)}

    place: dict[str, Any] = {
        "x": alt.X("x:Q", scale=alt.Scale(domain=[-1.2, 1.2], nice=False), axis=None),
        "y": alt.Y("y:Q", scale=alt.Scale(domain=[-0.8, 1.2], nice=False), axis=None),
    }
    step = _ring(top)
    rings = [{"r": r, "i": i, **at(r, i)} for r in range(step, int(top) + 1, step) for i in range(len(HS) + 1)]
    spokes = [{"h": h, "i": e, **at(top * e, k)} for k, h in enumerate(HS) for e in (0, 1)]
    corners = [{"h": h, **at(1.14 * top, k)} for k, h in enumerate(HS)]
    marks = [{"t": f"{r}", **at(r, 0)} for r in range(step, int(top) + 1, step)]
    outline = [
        {
            "model": line.label,
            "i": i,
            "colour": colour_of(line, experts),
            "score": shown(line.cells[HS[i % 3]]),
            "h": HS[i % 3],
        }
        | at(100 * line.cells[HS[i % 3]].found.value, i)
        for line in lines
        for i in range(len(HS) + 1)
    ]
    quiet = {"color": "currentColor", "opacity": 0.18}
    colour, tip = alt.Color("colour:N", scale=None), ["model:N", "h:N", "score:N"]
    layers = [
        chart(rings).mark_line(**quiet).encode(**place, detail="r:N", order="i:O"),
        chart(spokes).mark_line(**quiet).encode(**place, detail="h:N", order="i:O"),
        chart(marks).mark_text(align="left", dx=4, fontSize=11, opacity=0.75).encode(**place, text="t:N"),
        chart(outline).mark_line(strokeWidth=2).encode(**place, color=colour, detail="model:N", order="i:O"),
        chart(outline).mark_point(filled=True, size=45, opacity=1).encode(**place, color=colour, tooltip=tip),
        chart(corners).mark_text(fontSize=13, fontWeight=600).encode(**place, text="h:N"),
    ]
    return alt.layer(*layers).properties(width=SIDE, height=round(SIDE * 2.0 / 2.4))


# --- ternary ------------------------------------------------------------------------------------------------------


def ternary(key: str, board: Board, experts: Mapping[str, str]) -> Figure | None:
    """Each model's proportions of the three Hs, in a triangle cut out around them."""
    import altair as alt

    lines = complete(board)
    if len(lines) < 2:
        return None
    what, shares = _shares(board, lines)
    low = [math.floor(100 * min(s[k] for s in shares.values())) for k in range(3)]
    if (side := 100 - sum(low)) < 3:
        low = [v - 1 for v in low]
        side = 100 - sum(low)
    corner = ((0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(3) / 2))

    def at(parts: Sequence[float]) -> dict[str, float]:
        """Of percent that sum to 100, in the cut-out."""
        inside = [(p - v) / side for p, v in zip(parts, low, strict=True)]
        return {axis: sum(w * c[d] for w, c in zip(inside, corner, strict=True)) for d, axis in enumerate("xy")}

    def of(k: int, most: float, other: float) -> list[float]:
        """A point on the line where H number k is ``most``: the next H has ``other``, the third what is left."""
        parts = [0.0] * 3
        parts[k], parts[(k + 1) % 3] = most, other
        parts[(k + 2) % 3] = 100 - most - other
        return parts

    step = max(1, round(side / 5))
    grid, ticks = [], []
    for k, h in enumerate(HS):
        for value in range(low[k], low[k] + side, step):
            rest, nxt = 100 - value, (k + 1) % 3
            ends = of(k, value, low[nxt]), of(k, value, rest - low[(k + 2) % 3])
            grid += [{"line": f"{h} {value}", "i": i, **at(e)} for i, e in enumerate(ends)]
            ticks.append({"text": f"{value}%", "h": h, "k": k, **at(ends[1])})
    tops = [{"h": h, "text": f"more {h}", **at(of(k, low[k] + side, low[(k + 1) % 3]))} for k, h in enumerate(HS)]
    few = {line.label for line in named(lines)}
    points = [
        {"model": line.label, "kind": line.model.kind, "colour": colour_of(line, experts), "name": line.label}
        | {h: f"{s:.1f}%" for h, s in zip(HS, (100 * v for v in shares[line.label]), strict=True)}
        | at([100 * v for v in shares[line.label]])
        for line in lines
    ]
    labels = _apart([p for p in points if p["model"] in few])
    place: dict[str, Any] = {
        "x": alt.X("x:Q", scale=alt.Scale(domain=[-0.16, 1.5], nice=False), axis=None),
        "y": alt.Y("y:Q", scale=alt.Scale(domain=[-0.16, 1.0], nice=False), axis=None),
    }
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=list(SHAPES), range=list(SHAPES.values())), legend=None)
    tip = ["model:N", *(f"{h}:N" for h in HS)]
    ink = [experts.get(h, "currentColor") for h in HS]
    turned: dict[int, dict[str, Any]] = {
        0: {"dx": 0, "dy": 12, "align": "center"},
        1: {"dx": 8, "dy": 0, "align": "left"},
        2: {"dx": -8, "dy": 0, "align": "right"},
    }
    layers = [
        chart(grid).mark_line(color="currentColor", opacity=0.18).encode(**place, detail="line:N", order="i:O"),
        *(
            chart([t for t in ticks if t["k"] == k])
            .mark_text(fontSize=11, fontWeight=600, color=ink[k], **turned[k])
            .encode(**place, text="text:N")
            for k in range(3)
        ),
        *(
            chart([t])
            .mark_text(fontSize=13, fontWeight=600, color=ink[k], dy=-14 if k == 2 else 30)
            .encode(**place, text="text:N")
            for k, t in enumerate(tops)
        ),
        chart(points)
        .mark_point(filled=True, size=70, opacity=0.9)
        .encode(**place, color=alt.Color("colour:N", scale=None), shape=shape, tooltip=tip),
        chart(labels)
        .mark_line(color="currentColor", opacity=0.5, strokeWidth=0.8)
        .encode(**place, detail="name:N", order="end:O"),
        chart([p for p in labels if p["end"]])
        .mark_text(align="left", dx=3, fontSize=12)
        .encode(**place, text="name:N"),
    ]
    heads = ("model", "kind", *(f"share {h}" for h in HS))
    rows = tuple((line.label, line.model.kind, *(f"{100 * s:.1f}%" for s in shares[line.label])) for line in lines)
    return Figure(
        f"{key}-ternary",
        "Balance",
        f"The proportions of {what}; a third of each is the balance. Only the part of the triangle that holds models "
        f"is shown, so that small differences look large: its sides span {side} of 100 points. The scores' intervals "
        "hold here, too." + mark(board),
        [Panel("", alt.layer(*layers).properties(width=WIDE, height=round(WIDE * 1.16 / 1.66)), True)],
        Table(f"Proportions of {what}", heads, rows),
        legend=legend_of(lines, experts),
    )


def _shares(board: Board, lines: Sequence[Line]) -> tuple[str, dict[str, list[float]]]:
    """Model -> three parts that sum to 1: of what is kept of the specialists where each H has one, else of the scores."""
    own = {line.model.specialty: line.label for line in board.lines if line.model.specialty}
    what, parts = "a model's three scores", {line.label: [line.cells[h].found.value for h in HS] for line in lines}
    if all(h in own and all(line.retention.get(own[h]) for line in lines) for h in HS):
        what = "what a model keeps of each specialist"
        parts = {line.label: [line.retention[own[h]] or 0.0 for h in HS] for line in lines}
    return what, {name: [p / (sum(each) or 1.0) for p in each] for name, each in parts.items()}


def _apart(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line from each point to the place of its label: labels stand in one column at the right, in the order of height."""
    found: list[dict[str, Any]] = []
    ordered = sorted(points, key=lambda p: -p["y"])
    gap, top = 0.06, 0.8
    at = top
    for p in ordered:
        at = min(at, max(p["y"], gap * (len(ordered) - 1 - ordered.index(p))))
        found += [
            {"name": p["name"], "end": 0, "x": p["x"], "y": p["y"]},
            {"name": p["name"], "end": 1, "x": 1.12, "y": at},
        ]
        at -= gap
    return found


# --- Pareto fronts ------------------------------------------------------------------------------------------------


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other is better than on one axis and as good on the other, from left to right.

    >>> front([(1.0, 3.0), (2.0, 2.0), (1.0, 2.0), (3.0, 1.0), (2.0, 1.5)])
    [0, 1, 3]
    """
    best = [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points) and points.index((x, y)) == i
    ]
    return sorted(best, key=lambda i: points[i])


def pareto(key: str, board: Board, experts: Mapping[str, str]) -> Figure | None:
    """Each H against each other, with intervals both ways and the line of models that no other beats on both."""
    import altair as alt

    lines = complete(board)
    if len(lines) < 2:
        return None
    panels, rows = [], []
    for a, b in combinations(HS, 2):
        values = [(100 * line.cells[a].found.value, 100 * line.cells[b].found.value) for line in lines]
        best = front([(round(x, 9), round(y, 9)) for x, y in values])
        on = [lines[i].label for i in best]
        records = [
            {
                "model": line.label,
                "kind": line.model.kind,
                "colour": colour_of(line, experts),
                "x": x,
                "y": y,
                "x1": 100 * line.cells[a].found.low,
                "x2": 100 * line.cells[a].found.high,
                "y1": 100 * line.cells[b].found.low,
                "y2": 100 * line.cells[b].found.high,
                "front": line.label in on,
                a: shown(line.cells[a]),
                b: shown(line.cells[b]),
            }
            for line, (x, y) in zip(lines, values, strict=True)
        ]
        colour, tip = alt.Color("colour:N", scale=None), ["model:N", f"{a}:N", f"{b}:N"]
        scale, axis = alt.Scale(zero=False, nice=True), alt.Axis(tickCount=5, labelFlush=False)
        x = alt.X("x:Q", title=f"{a}, {PERCENT}", scale=scale, axis=axis)
        y = alt.Y("y:Q", title=f"{b}, {PERCENT}", scale=scale, axis=axis)
        shape = alt.Shape("kind:N", scale=alt.Scale(domain=list(SHAPES), range=list(SHAPES.values())), legend=None)
        strong = alt.condition("datum.front", alt.value(0.65), alt.value(0.12))
        edge = [records[i] for i in best]
        layers = [
            chart(records)
            .mark_rule(strokeWidth=1.2)
            .encode(
                x=alt.X("x1:Q", title=f"{a}, {PERCENT}", scale=scale, axis=axis),
                x2="x2:Q",
                y=y,
                color=colour,
                opacity=strong,
            ),
            chart(records)
            .mark_rule(strokeWidth=1.2)
            .encode(
                x=x,
                y=alt.Y("y1:Q", title=f"{b}, {PERCENT}", scale=scale, axis=axis),
                y2="y2:Q",
                color=colour,
                opacity=strong,
            ),
            chart(edge)
            .mark_line(color="currentColor", strokeWidth=1.5, strokeDash=[5, 3], interpolate="step-before")
            .encode(x=x, y=y),
            chart(records)
            .mark_point(filled=True, size=60, opacity=0.95)
            .encode(x=x, y=y, color=colour, shape=shape, tooltip=tip),
        ]
        panels.append(Panel(f"{a} and {b}", alt.layer(*layers).properties(height=280)))
        rows += [(f"{a} and {b}", name) for name in on]
    return Figure(
        f"{key}-pareto",
        "Pareto fronts",
        "Models on two of the three Hs, with 95% intervals, bolder for those that no other beats on both: the dashed "
        "line joins them, and the table names them. Where crosses overlap, that may be chance." + mark(board),
        panels,
        Table("Models on the fronts", ("of", "model"), tuple(rows)),
        legend=legend_of(lines, experts),
        columns=3,
    )
