"""Singular values of the deltas, with the ranks that the spectral methods keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triune.diagnostics.records import Diagnosis
from triune.reports.figures.changes import layers_of, projections_of
from triune.reports.figures.figure import Figure, Panel, Table, chart

SHAPES = ("circle", "triangle-up", "square", "diamond")


def spectra(key: str, found: Diagnosis, colours: Mapping[str, str]) -> Figure | None:
    """One layer's matrices, a panel each: s / s_1 by index, and on the floor of the plot where each method cuts."""
    import altair as alt

    layers, names = layers_of(found), found.header.experts
    middle = list(layers)[len(layers) // 2] if layers else None
    tensors = layers[middle] if middle is not None else list(found.tensors)[:6]
    order = projections_of(tensors)
    tensors = sorted((t for t in tensors if any(e.knots for e in t.experts)), key=lambda t: order.index(t.projection))
    if not tensors:
        return None
    methods = list(dict.fromkeys(m for t in tensors for e in t.experts for m in e.ranks))
    points = [s for t in tensors for e in t.experts for _, s in e.knots or () if s > 0]
    last = max(i for t in tensors for e in t.experts for i in (*(i for i, _ in e.knots or ()), *e.ranks.values()))
    floor = 0.4 * min(points)
    ticks = range(1, last + 1) if last <= 10 else [n for p in range(6) for n in (10**p, 3 * 10**p) if n <= 1.15 * last]
    x = alt.X(
        "index:Q",
        title="index of the singular value",
        scale=alt.Scale(type="log", domain=[1, 1.15 * last], nice=False),
        axis=alt.Axis(format="d", grid=False, values=list(ticks)),
    )
    y = alt.Y(
        "share:Q",
        title="s / s₁",
        scale=alt.Scale(type="log", domain=[floor, 1.1], nice=False),
        axis=alt.Axis(
            format=".1~g", values=[v for p in range(8) for v in (10.0**-p, 3 * 10.0 ** (-p - 1)) if v >= floor]
        ),
    )
    colour = alt.Color("expert:N", scale=alt.Scale(domain=list(names), range=[colours[n] for n in names]), legend=None)
    shape = alt.Shape(
        "method:N",
        scale=alt.Scale(domain=methods, range=[SHAPES[i % len(SHAPES)] for i in range(len(methods))]),
        legend=alt.Legend(orient="bottom", title="rank kept by", symbolFillColor="currentColor", symbolStrokeWidth=0),
    )
    rows, panels = [], []
    for tensor in tensors:
        curve, cuts = [], []
        for name, e in zip(names, tensor.experts, strict=True):
            curve += [{"expert": name, "index": i, "share": s} for i, s in e.knots or () if s > 0]
            level = floor * 1.3 ** names.index(name)  # one above the other: ranks are often the same
            cuts += [{"expert": name, "method": m, "index": r, "share": level} for m, r in e.ranks.items()]
            rows.append((tensor.projection, name, e.rank, e.effective_rank, *(e.ranks.get(m) for m in methods)))
        tip = ["expert:N", "index:Q"]
        line = (
            chart(curve)
            .mark_line(strokeWidth=2)
            .encode(x=x, y=y, color=colour, tooltip=[*tip, alt.Tooltip("share:Q", format=".3g")])
        )
        mark = (
            chart(cuts)
            .mark_point(filled=True, size=80, opacity=0.85)
            .encode(x=x, y=y, color=colour, shape=shape, tooltip=["method:N", *tip])
        )
        plot = alt.layer(line, mark) if methods else line
        panels.append(Panel(tensor.projection, plot.properties(height=170)))
    kept = [(m, [e.ranks[m] for t in found.tensors for e in t.experts if m in e.ranks]) for m in methods]
    where = f"of layer {middle}, the middle one" if middle is not None else "of the first matrices"
    return Figure(
        f"{key}-spectra",
        "Spectra and the ranks chosen" if methods else "Spectra",
        f"Singular values {where}, each over the largest{_cuts(kept)}.",
        panels,
        Table(f"Ranks {where}", ("tensor", "expert", "rank", "effective rank", *methods), tuple(rows)),
        legend={n: colours[n] for n in names},
        columns=3,
    )


def _cuts(kept: Sequence[tuple[str, Sequence[int]]]) -> str:
    """What the marks are, and the ranks over the whole model; empty of a diagnosis without effects."""
    if not kept:
        return ""
    told = (
        "; marks on the floor show at which rank a method cuts. Over the whole model: "
        f"{'; '.join(f'{m} keeps {_range(ranks)}' for m, ranks in kept)}"
    )
    damped = ". R-TSVM cuts after damping outliers, which gives a low-rank delta a higher rank"
    return told + damped * any(m == "r_tsvm" for m, _ in kept)


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
