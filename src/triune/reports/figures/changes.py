"""Heat maps of what experts changed: by layer, and by layer and projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triune.diagnostics.records import Diagnosis, Tensor
from triune.reports.figures.figure import Cell, Figure, Panel, Table, chart

MEASURES: Mapping[str, tuple[str, str]] = {
    "relative": ("change (norm of the delta over the base's)", ".2~%"),
    "outlier_mass": ("outliers (share of the sum of magnitudes)", ".0%"),
    "stable_rank": ("stable rank", ".2~g"),
    "energy_kept": ("energy in the first r / T triplets", ".0%"),
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The usual ones, in the order of the forward pass; others follow as the model has them."""


def layers_of(found: Diagnosis) -> dict[int, list[Tensor]]:
    """Layer -> its tensors, from the first layer to the last."""
    return dict(sorted(found.by("layer").items()))


def projections_of(tensors: Sequence[Tensor]) -> list[str]:
    """Names of projections, in the order of the forward pass."""
    there = dict.fromkeys(t.projection for t in tensors)
    return [*(p for p in PROJECTIONS if p in there), *(p for p in there if p not in PROJECTIONS)]


def heat(
    records: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    value: str,
    *,
    rows: Sequence[str],
    columns: Sequence[Any],
    form: str = ".2~g",
    domain: Sequence[float] | None = None,
    colours: Sequence[str] = (),
) -> Any:
    """A heat map whose rows and columns keep their order; in viridis, or from the first to the last of ``colours``."""
    import altair as alt

    step = max(1, round(len(columns) / 6))
    ramp = {"range": list(colours), "interpolate": "lab"} if colours else {"scheme": "viridis"}
    scale = alt.Scale(**ramp, **({"domain": list(domain)} if domain else {}))
    return (
        chart(records)
        .mark_rect()
        .encode(
            x=alt.X(f"{x}:O", sort=list(columns), title=x, axis=alt.Axis(labelAngle=0, values=list(columns)[::step])),
            y=alt.Y(f"{y}:N", sort=list(rows), title=None),
            color=alt.Color(
                f"{value}:Q",
                title=None,
                scale=scale,
                legend=alt.Legend(orient="bottom", format=form, gradientThickness=10, tickCount=3),
            ),
            tooltip=[f"{x}:O", f"{y}:N", alt.Tooltip(f"{value}:Q", format=".3g")],
        )
        .properties(height=24 * len(rows))
    )


def by_layer(key: str, found: Diagnosis) -> Figure | None:
    """Experts against layers, a panel for each measure."""
    layers = layers_of(found)
    names = found.header.experts
    if len(layers) < 2:
        return None
    table: list[tuple[Cell, ...]] = []
    panels = []
    for measure, (title, form) in MEASURES.items():
        values = {(n, at): found.mean(ts, t, measure) for t, n in enumerate(names) for at, ts in layers.items()}
        known: list[dict[str, Any]] = [
            {"expert": n, "layer": at, "value": v} for (n, at), v in values.items() if v is not None
        ]
        if len({round(r["value"], 6) for r in known}) > 1:  # a measure that is the same everywhere shows nothing
            panels.append(
                Panel(title, heat(known, "layer", "expert", "value", rows=names, columns=list(layers), form=form))
            )
            table += [(title, n, *(values[n, at] for at in layers)) for n in names]
    if not panels:
        return None
    mean = {n: found.mean(found.tensors, t, "relative") or 0.0 for t, n in enumerate(names)}
    most, least = max(mean, key=lambda n: mean[n]), min(mean, key=lambda n: mean[n])
    see = f"{most} changed the base most ({mean[most]:.3%} of its norm) and {least} least ({mean[least]:.3%})."
    heads = ("measure", "expert", *(f"layer {at}" for at in layers))
    shown = Table("Means over each layer, weighted by entries", heads, tuple(table))
    return Figure(f"{key}-layers", "Layer by expert", f"{see} Columns are layers.", panels, shown, columns=2)


def by_projection(key: str, found: Diagnosis) -> Figure | None:
    """Projections against layers, a panel for each expert."""
    layers, names = layers_of(found), found.header.experts
    inside = [t for ts in layers.values() for t in ts]
    kinds = projections_of(inside)
    if len(layers) < 2 or len(kinds) < 2:
        return None
    top = max(inside, key=lambda t: max(x.relative or 0.0 for x in t.experts))
    peak = max(x.relative or 0.0 for x in top.experts)
    panels = []
    for e, name in enumerate(names):
        known = [
            {"layer": t.layer, "tensor": t.projection, "change": t.experts[e].relative}
            for t in inside
            if t.experts[e].relative is not None
        ]
        panels.append(
            Panel(
                name,
                heat(
                    known,
                    "layer",
                    "tensor",
                    "change",
                    rows=kinds,
                    columns=list(layers),
                    form=".2~%",
                    domain=(0.0, peak),
                ),
            )
        )
    rows = tuple((t.layer, t.projection, *(x.relative for x in t.experts)) for t in inside)
    return Figure(
        f"{key}-projections",
        "Where each expert changed the base",
        f"Norm of the delta over the base's, for each matrix; one scale for all. The largest is {top.projection} of layer "
        f"{top.layer}: {peak:.2%}.",
        panels,
        Table("Change of each matrix", ("layer", "tensor", *names), rows),
        columns=min(3, len(names)),
    )
