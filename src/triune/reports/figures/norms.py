"""What a merge wrote, by its lock file: the change of each layer beside what the experts changed, and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triune.output.gate import TensorNorms
from triune.output.strip import changes_by_layer, has_base
from triune.reports.colours import KINDS
from triune.reports.figures.figure import Figure, Panel, Table, chart


def by_layer(key: str, lock: Mapping[str, Any], colours: Mapping[str, str]) -> Figure | None:
    """Norm of the change in each layer over the base's: of the experts, and of the merged model."""
    import altair as alt

    norms: Mapping[str, Mapping[str, Any]] = lock.get("norms") or {}
    count = max((len(n["deltas"]) for n in norms.values()), default=0)
    experts = [str(m["name"]) for m in lock.get("models", [])[-count:]]
    told = [TensorNorms(t, 0.0, n["base"], tuple(n["deltas"]), n["merged_delta"]) for t, n in norms.items()]
    changes = changes_by_layer(told, experts)
    layers = list(changes[-1][1])
    if not count or len(layers) < 2:
        return None
    names = [name for name, _ in changes]
    of, form, short = (" over the base's", ".2%", ".2~%") if has_base(told) else ("", ".3g", ".2~g")
    records = [{"layer": at, "model": name, "change": v} for name, each in changes for at, v in each.items()]
    rows = [(at, *(each[at] for _, each in changes)) for at in layers]
    legend = {n: colours.get(n, KINDS["other"]) for n in experts} | {"merged": KINDS["merge"]}
    scale = alt.Scale(domain=list(legend), range=list(legend.values()))
    dash = alt.StrokeDash(
        "model:N", scale=alt.Scale(domain=list(legend), range=[[1, 0]] * len(experts) + [[6, 3]]), legend=None
    )
    plot = (
        chart(records)
        .mark_line(strokeWidth=2, point={"size": 22, "filled": True})
        .encode(
            x=alt.X(
                "layer:Q",
                title="layer",
                axis=alt.Axis(tickMinStep=1, format="d", grid=False),
                scale=alt.Scale(nice=False),
            ),
            y=alt.Y(
                "change:Q",
                title="norm of the change / base's" if of else "norm of the change",
                axis=alt.Axis(format=short, tickCount=5),
            ),
            color=alt.Color("model:N", scale=scale, legend=None),
            strokeDash=dash,
            tooltip=["model:N", "layer:Q", alt.Tooltip("change:Q", format=form)],
        )
        .properties(height=220)
    )
    most = max(rows, key=lambda r: r[-1])
    return Figure(
        f"{key}-norms",
        "How far the merge moved",
        f"Norm of each layer's change{of}. The merged model (dashed) moved most in layer {most[0]}: {most[-1]:{form}}.",
        [Panel("", plot)],
        Table(f"Norm of the change{of}", ("layer", *names), tuple(rows)),
        legend=legend,
    )


def ranks(key: str, lock: Mapping[str, Any]) -> Figure | None:
    """Ranks of the merged deltas, where the merge ran in factors: how many tensors have which."""
    import altair as alt

    told: Mapping[str, int] = lock.get("ranks") or {}
    if not told:
        return None
    counts: dict[int, int] = {}
    for rank in told.values():
        counts[rank] = counts.get(rank, 0) + 1
    records = [{"rank": r, "tensors": n} for r, n in sorted(counts.items())]
    plot = (
        chart(records)
        .mark_bar(color=KINDS["merge"], size=28)
        .encode(
            x=alt.X("rank:O", title="rank of the merged delta", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("tensors:Q", title="tensors", axis=alt.Axis(tickMinStep=1)),
            tooltip=["rank:O", "tensors:Q"],
        )
        .properties(height=160)
    )
    low, high = min(counts), max(counts)
    span = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return Figure(
        f"{key}-ranks",
        "Ranks of the merged deltas",
        f"{len(told)} tensors were merged by the adapters' factors and have {span}.",
        [Panel("", plot)],
        Table("Tensors of each rank", ("rank", "tensors"), tuple((r, n) for r, n in sorted(counts.items()))),
    )
