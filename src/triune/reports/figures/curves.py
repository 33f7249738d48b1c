"""Training curves, and preference accuracies of the trained models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triune.align.card import PANELS
from triune.reports.colours import KINDS
from triune.reports.figures.figure import Cell, Figure, Panel, Table, chart
from triune.reports.figures.scores import dots
from triune.reports.inputs import Training

WINDOW = 5
"""Steps in the mean that the thick lines show, where there are more than twice as many."""


def curves(key: str, run: Training, colours: Mapping[str, str]) -> Figure | None:
    """Loss, reward margin and reward accuracy by step, a line for each model."""
    import altair as alt

    known = {name: records for name, records in run.curves.items() if records}
    fields = [f for f in PANELS if any(f in r for records in known.values() for r in records)][:3]
    if not fields:
        return None
    names = list(known)
    dashes = [[1, 0], [6, 3], [2, 2]]
    order = {c: [n for n in names if colours[n] == c] for c in dict.fromkeys(colours[n] for n in names)}
    dash = [dashes[order[colours[n]].index(n) % len(dashes)] for n in names]
    window = WINDOW if max(map(len, known.values())) > 2 * WINDOW else 1
    panels = []
    ends: list[tuple[Cell, ...]] = []
    for wanted in fields:
        records = [
            {"model": n, "step": r["step"], "value": r[wanted], "mean": sum(near) / len(near)}
            for n, each in known.items()
            for i, r in enumerate(each)
            if wanted in r and (near := [x[wanted] for x in each[max(0, i + 1 - window) : i + 1] if wanted in x])
        ]
        title = wanted.replace("_", " ")
        x = alt.X(
            "step:Q", axis=alt.Axis(tickMinStep=1, format="d", grid=False, tickCount=6), scale=alt.Scale(nice=False)
        )
        scale = alt.Scale(zero=False)
        colour = alt.Color("model:N", scale=alt.Scale(domain=names, range=[colours[n] for n in names]), legend=None)
        raw = (
            chart(records)
            .mark_line(strokeWidth=1, opacity=0.3)
            .encode(x=x, y=alt.Y("value:Q", title=None, scale=scale), color=colour)
        )
        smooth = (
            chart(records)
            .mark_line(strokeWidth=2.2)
            .encode(
                x=x,
                y=alt.Y("mean:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5)),
                color=colour,
                strokeDash=alt.StrokeDash("model:N", scale=alt.Scale(domain=names, range=dash), legend=None),
                tooltip=["model:N", "step:Q", alt.Tooltip("value:Q", title=title, format=".3g")],
            )
        )
        plot = alt.layer(raw, smooth).properties(height=200)
        panels.append(Panel(title, plot))
    for name, each in known.items():
        ends.append((name, each[-1]["step"], *(f"{each[0].get(f, 0):.3g} → {each[-1].get(f, 0):.3g}" for f in fields)))
    drawn = (
        f"Thin lines are the batches, thick ones the mean of {window} steps." if window > 1 else "One value a batch."
    )
    moved = ", ".join(f"{row[0]} {row[2]}" for row in ends[:3])
    return Figure(
        f"{key}-curves",
        "Training curves",
        f"{drawn} {fields[0].replace('_', ' ').capitalize()} from the first batch to the last: {moved}"
        f"{', …' if len(ends) > 3 else '.'}",
        panels,
        Table("First and last step", ("model", "steps", *(f.replace("_", " ") for f in fields)), tuple(ends)),
        legend={n: colours[n] for n in names},
        columns=3,
    )


def accuracy(key: str, told: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]) -> Figure | None:
    """Implicit reward accuracy on held-out pairs by model, a panel a dimension: records of n and of share, low, high."""
    dimensions = list(dict.fromkeys(d for each in told.values() for d in each))
    if not dimensions:
        return None
    panels, rows = [], []
    for dimension in dimensions:
        records = []
        n = 0
        for model, each in told.items():
            if dimension not in each:
                continue
            value, low, high = each[dimension]["reward"]
            n = each[dimension]["n"]
            text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
            rows.append((dimension, model, n, text))
            records.append(
                {"name": model, "value": value, "low": low, "high": high, "text": text}
                | {"colour": colours.get(model, KINDS["other"])}
            )
        panels.append(
            Panel(
                f"{dimension} (n = {n})",
                dots(records, rows=list(told), title="share of pairs", line_at=0.5, share=True),
            )
        )
    return Figure(
        f"{key}-accuracy",
        "Preference accuracy",
        "How often a model's log-probability minus the base's is higher for the chosen answer than for the rejected one, on "
        "held-out pairs, with 95% Wilson intervals; the dashed line is the base. It measures what training optimises: "
        "a first look, not a benchmark.",
        panels,
        Table("Implicit reward accuracy", ("dimension", "model", "n", "share, interval"), tuple(rows)),
        columns=min(3, len(dimensions)),
    )
