"""A continual experiment: each dimension's accuracy as dimensions arrive, and what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triune.align.summary import LOST
from triune.reports.colours import EXPERTS
from triune.reports.figures.figure import Figure, Panel, Table, chart
from triune.reports.figures.scores import SHARE


def sides_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Each side of the comparison and its colour: the merges, and the model that is trained on."""
    return {side: EXPERTS[i % len(EXPERTS)] for i, side in enumerate(summary.get("matrix", {}))}


def steps(key: str, summary: Mapping[str, Any]) -> Figure | None:
    """Accuracy on each dimension after each step, a panel a dimension and a line a side."""
    import altair as alt

    matrix, taught = summary.get("matrix", {}), summary.get("stages", {})
    colours = sides_of(summary)
    dimensions = list(dict.fromkeys(d for rows in matrix.values() for row in rows for d in row["accuracy"]))
    if not dimensions:
        return None
    arrives = {
        d: int(step) for step, name in taught.items() for d in ([name] if name in dimensions else str(name).split("+"))
    }
    count = max(len(rows) for rows in matrix.values())
    colour = alt.Color("side:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
    panels, table = [], []
    for dimension in dimensions:
        records, n = [], 0
        for s, (side, rows) in enumerate(matrix.items()):
            for row in rows:
                value, low, high = row["accuracy"][dimension]["reward"]
                n = row["accuracy"][dimension]["n"]
                # Beside each other, so that the intervals of one step do not hide each other.
                at = row["step"] + 0.08 * (s - (len(matrix) - 1) / 2)
                text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
                records.append(
                    {
                        "side": side,
                        "at": at,
                        "step": row["step"],
                        "value": value,
                        "low": low,
                        "high": high,
                        "text": text,
                    }
                )
                table.append((dimension, side, row["step"], n, text))
        x = alt.X(
            "at:Q",
            title="step",
            scale=alt.Scale(domain=[0.7, count + 0.3], nice=False),
            axis=alt.Axis(values=list(range(1, count + 1)), format="d", grid=False),
        )
        y = alt.Y(
            "value:Q", title="share of pairs", scale=SHARE, axis=alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".2f")
        )
        tip = ["side:N", "step:Q", "text:N"]
        half = chart([{"y": 0.5}]).mark_rule(strokeDash=[3, 3], opacity=0.5, color="currentColor").encode(y="y:Q")
        bars = (
            chart(records)
            .mark_rule(opacity=0.5, strokeWidth=1.5)
            .encode(x=x, y=alt.Y("low:Q", title="share of pairs"), y2="high:Q", color=colour)
        )
        line = (
            chart(records)
            .mark_line(strokeWidth=2, point={"size": 55, "filled": True})
            .encode(x=x, y=y, color=colour, tooltip=tip)
        )
        layers = [half, bars, line]
        if dimension in arrives:
            here = chart([{"x": arrives[dimension], "text": "taught"}])
            layers.insert(0, here.mark_rule(opacity=0.12, strokeWidth=22, color="currentColor").encode(x=alt.X("x:Q")))
        panels.append(Panel(f"{dimension} (n = {n})", alt.layer(*layers).properties(height=230)))
    order = ", ".join(f"{step}. {dimension}" for step, dimension in taught.items())
    return Figure(
        f"{key}-steps",
        "Step by step",
        f"The dimensions arrived in this order: {order}; the grey bar marks when a panel's own was taught. Share of "
        "held-out pairs whose chosen answer has the higher implicit reward, with 95% Wilson intervals; the dotted line "
        "is the base.",
        panels,
        Table("Accuracy after each step", ("dimension", "side", "step", "n", "share, interval"), tuple(table)),
        legend=colours,
        columns=min(3, len(dimensions)),
    )


def forgotten(key: str, summary: Mapping[str, Any]) -> Figure | None:
    """What each side lost of each dimension again."""
    told, colours = summary.get("forgetting", {}), sides_of(summary)
    records = [
        {"side": side, "dimension": d, "lost": r["value"], "n": r["n"]}
        for side, each in told.items()
        for d, r in each.items()
    ]
    if not records:
        return None
    rows = tuple(
        (side, d, f"{r['value']:+.3f}", r["n"], *("{:.3f} [{:.3f}, {:.3f}]".format(*r[k]) for k in ("best", "last")))
        for side, each in told.items()
        for d, r in each.items()
    )
    most = max(records, key=lambda r: r["lost"])
    said = (
        f"{most['side']} lost most: {most['lost']:+.3f} of {most['dimension']}."
        if most["lost"] > 0
        else "Nothing was lost."
    )
    dimensions = list(dict.fromkeys(r["dimension"] for r in records))
    reach = max(0.05, *(abs(r["lost"]) for r in records)) * 1.1
    panels = [Panel(d, _lost([r for r in records if r["dimension"] == d], colours, reach)) for d in dimensions]
    heads = ("side", "dimension", "lost", "n", "best before", "at the end")
    return Figure(
        f"{key}-forgetting",
        "Forgetting",
        f"{said} {' '.join(LOST.split('.')[0].split())}. Of few pairs (n is in the table) a difference inside the "
        "intervals of both shares means nothing.",
        panels,
        Table("Forgetting, with both shares and their 95% intervals", heads, rows),
        legend=colours,
        columns=min(3, len(panels)),
    )


def _lost(records: Sequence[Mapping[str, Any]], colours: Mapping[str, str], reach: float) -> Any:
    """A point for each side, on a stem from 0."""
    import altair as alt

    scale = alt.Scale(domain=[-reach, reach], nice=False)
    x = alt.X("lost:Q", title="lost (below 0: gained)", scale=scale, axis=alt.Axis(format="+.2f", tickCount=5))
    y = alt.Y("side:N", sort=list(colours), title=None)
    ink = alt.Color("side:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
    tip = ["side:N", "dimension:N", alt.Tooltip("lost:Q", format="+.3f"), "n:Q"]
    return alt.layer(
        chart([{"lost": 0}]).mark_rule(strokeDash=[3, 3], opacity=0.6, color="currentColor").encode(x=x),
        chart(records).mark_bar(height=3).encode(x=x, y=y, color=ink),
        chart(records).mark_point(filled=True, size=80, opacity=1).encode(x=x, y=y, color=ink, tooltip=tip),
    ).properties(height=max(60, 30 * len(colours)))
