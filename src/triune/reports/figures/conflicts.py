"""Where experts disagree, and what each method would make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triune.diagnostics.records import Diagnosis, effects_table
from triune.reports.colours import APART
from triune.reports.figures.changes import heat, layers_of
from triune.reports.figures.figure import Figure, Panel, Table, chart

PAIRS: Mapping[str, tuple[str, str, tuple[float, float, float]]] = {
    "conflict": ("opposite signs", ".1%", (0.3, 0.5, 0.7)),
    "cancelled": ("cancelled in the sum", ".1%", (0.0, 0.29, 0.58)),
    "cosine": ("cosine", ".2f", (-1.0, 0.0, 1.0)),
}
"""Measure -> title, format, and a scale whose middle is what experts that know nothing of each other would have."""


def numbers(
    records: Sequence[Mapping[str, Any]],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    form: str,
    domain: tuple[float, float, float],
) -> Any:
    """A matrix of numbers on colours: records of ``column``, ``row`` and ``value``; ``domain`` is lowest, middle, highest.

    Two colours meet in grey at the middle; without a middle (the lowest again) the colours go one way.
    """
    import altair as alt

    x = alt.X(
        "column:N", sort=list(columns), title=None, axis=alt.Axis(labelAngle=0, orient="top", domain=False, ticks=False)
    )
    y = alt.Y("row:N", sort=list(rows), title=None, axis=alt.Axis(domain=False, ticks=False))
    low, middle, high = domain
    balanced = middle != low
    ramp = {"range": list(APART), "interpolate": "lab"} if balanced else {"scheme": "viridis"}
    scale = alt.Scale(domain=list(domain) if balanced else [low, high], clamp=True, **ramp)
    dark = f"abs(datum.value - {middle}) > {0.6 * (high - middle)}" if balanced else f"datum.value < {(low + high) / 2}"
    cells = (
        chart(records)
        .mark_rect()
        .encode(
            x=x,
            y=y,
            color=alt.Color("value:Q", scale=scale, legend=None),
            tooltip=["row:N", "column:N", alt.Tooltip("value:Q", format=".3f")],
        )
    )
    ink = alt.condition(dark, alt.value("#fff"), alt.value("#000"))
    text = chart(records).mark_text(fontSize=13).encode(x=x, y=y, text=alt.Text("value:Q", format=form), color=ink)
    return alt.layer(cells, text).properties(height=34 * len(rows) + 10)


def matrix(key: str, found: Diagnosis) -> Figure | None:
    """Experts against experts, a panel for each measure of disagreement."""
    names = found.header.experts
    if not found.pairs:
        return None
    panels, table = [], []
    for measure, (title, form, domain) in PAIRS.items():
        records = []
        for i, j in found.pairs:
            value = found.pair_mean(found.tensors, (i, j), measure)
            if value is not None:
                records += [{"row": names[a], "column": names[b], "value": value} for a, b in ((i, j), (j, i))]
                table.append((title, names[i], names[j], value))
        panels.append(Panel(title, numbers(records, columns=names, rows=names, form=form, domain=domain)))
    worst = max(found.pairs, key=lambda p: found.pair_mean(found.tensors, p, "conflict") or 0.0)
    share = found.pair_mean(found.tensors, worst, "conflict") or 0.0
    return Figure(
        f"{key}-conflict",
        "Conflict between experts",
        f"{names[worst[0]]} and {names[worst[1]]} disagree most: {share:.1%} of the entries that both change have "
        "opposite signs. Grey is what experts that know nothing of each other would have: 50%, a loss of 29% in the "
        "sum, a cosine of 0.",
        panels,
        Table("Means over the model, weighted by entries", ("measure", "expert", "expert ", "value"), tuple(table)),
        columns=3,
    )


def by_layer(key: str, found: Diagnosis) -> Figure | None:
    """Opposite signs of each pair, layer by layer."""
    layers, names = layers_of(found), found.header.experts
    pairs = {f"{names[i]}, {names[j]}": (i, j) for i, j in found.pairs}
    if len(layers) < 2 or not pairs:
        return None
    values = {(p, at): found.pair_mean(ts, ij, "conflict") for p, ij in pairs.items() for at, ts in layers.items()}
    known = {k: v for k, v in values.items() if v is not None}
    records = [{"pair": p, "layer": at, "conflict": v} for (p, at), v in known.items()]
    top = max(known, key=lambda k: known[k])
    far = max(0.05, *(abs(v - 0.5) for v in known.values()))
    plot = heat(
        records,
        "layer",
        "pair",
        "conflict",
        rows=list(pairs),
        columns=list(layers),
        form=".0%",
        domain=(0.5 - far, 0.5, 0.5 + far),
        colours=APART,
    )
    return Figure(
        f"{key}-conflict-layers",
        "Conflict by layer",
        f"Share of opposite signs; grey is chance, 50%. The most is in layer {top[1]}, between "
        f"{top[0].replace(', ', ' and ')}: {known[top]:.1%}.",
        [Panel("", plot)],
        Table(
            "Share of opposite signs",
            ("pair", *(f"layer {at}" for at in layers)),
            tuple((p, *(values[p, at] for at in layers)) for p in pairs),
        ),
    )


def effects(key: str, found: Diagnosis) -> Figure | None:
    """What each method would keep of each expert."""
    names, told = found.header.experts, effects_table(found)
    records: list[dict[str, Any]] = [
        {"row": method, "column": name, "value": effect.kept}
        for method, each in told
        for name, effect in zip(names, each, strict=True)
        if effect
    ]
    if not records:
        return None
    methods = [m for m, _ in told]
    low, top = min(0.0, *(r["value"] for r in records)), max(1.0, *(r["value"] for r in records))
    rows = tuple(
        (m, name, e.kept, e.flipped, e.dropped) for m, each in told for name, e in zip(names, each, strict=True) if e
    )
    return Figure(
        f"{key}-effects",
        "What each method would keep",
        "The part of each expert's delta that the merge still holds: 1 all of it, 0 nothing, below 0 the other way. "
        "The first method runs with the recipe's settings, the others with weight 1 and density 0.5.",
        [
            Panel(
                "",
                numbers(
                    records,
                    columns=names,
                    rows=methods,
                    form=".2f",
                    domain=(low, low, top),
                ),
            )
        ],
        Table("Effect on each expert", ("method", "expert", "kept", "signs flipped", "entries dropped"), rows),
    )
