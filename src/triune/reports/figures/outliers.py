"""How large the entries of the deltas are, before outliers are damped and after."""

from __future__ import annotations

from collections.abc import Mapping

from triune.diagnostics.records import Diagnosis
from triune.reports.figures.figure import Figure, Panel, Table, chart

LOW, HIGH, PARTS = -10, 8, 4
"""Of the records' histograms: powers of two, each in quarters."""
POWER = "datum.value < 0 ? '1/' + pow(2, -datum.value) : '' + pow(2, datum.value)"


def histograms(key: str, found: Diagnosis, colours: Mapping[str, str]) -> Figure | None:
    """Entries by magnitude over root mean square, all tensors together, a panel for each expert."""
    import altair as alt

    names = found.header.experts
    places = range((HIGH - LOW) * PARTS)
    panels, rows, cut = [], [], {}
    step = 1 / PARTS
    sums = {
        (name, when): [sum(getattr(t.experts[e], field)[i] for t in found.tensors) for i in places]
        for e, name in enumerate(names)
        for when, field in (("before", "histogram"), ("after", "damped"))
    }
    # The first bin holds all that is smaller, too: no place to draw it at.
    seen = [i for i in places if i and any(counts[i] for counts in sums.values())]
    if not seen:
        return None
    lowest = min(c / sum(counts) for counts in sums.values() for c in counts[1:] if c)
    for e, name in enumerate(names):
        records = []
        for when in ("before", "after"):
            counts = sums[name, when]
            total = sum(counts) or 1
            for i in range(seen[0], seen[-1] + 1):
                records.append({"size": LOW + (i + 0.5) * step, "share": counts[i] / total or None, "when": when})
        cut[name] = found.mean(found.tensors, e, "outlier_mass") or 0.0
        rows += [
            (
                name,
                f"2^{LOW + i / PARTS:g} to 2^{LOW + (i + 1) / PARTS:g}",
                sums[name, "before"][i],
                sums[name, "after"][i],
            )
            for i in range(seen[0], seen[-1] + 1)
        ]
        dash = alt.Scale(domain=["before", "after"], range=[[4, 3], [1, 0]])
        plot = (
            chart(records)
            .mark_line(interpolate="step", strokeWidth=1.8, color=colours[name])
            .encode(
                x=alt.X(
                    "size:Q",
                    title="magnitude / root mean square",
                    scale=alt.Scale(nice=False),
                    axis=alt.Axis(values=list(range(LOW + 2, HIGH + 1, 4)), labelExpr=POWER, grid=False),
                ),
                y=alt.Y(
                    "share:Q",
                    title="share of entries",
                    scale=alt.Scale(type="log", domain=[lowest, 0.2], nice=False),
                    axis=alt.Axis(format="~%", values=[10.0**p for p in range(-9, 0, 2)]),
                ),
                strokeDash=alt.StrokeDash(
                    "when:N",
                    scale=dash,
                    legend=alt.Legend(orient="bottom", title="weighting", symbolStrokeColor="currentColor"),
                ),
                tooltip=["when:N", alt.Tooltip("share:Q", format=".2%")],
            )
            .properties(height=190)
        )
        panels.append(Panel(name, plot))
    most = max(cut, key=lambda n: cut[n])
    return Figure(
        f"{key}-outliers",
        "Outliers before and after weighting",
        "Entries by their magnitude, in quarter octaves; both axes are logarithmic. R-TSVM cuts what stands above mean "
        f"plus three deviations: the outliers hold up to {cut[most]:.1%} of the sum of magnitudes ({most}).",
        panels,
        Table("Entries in each bin", ("expert", "magnitude over root mean square", "before", "after"), tuple(rows)),
        columns=min(3, len(names)),
    )
