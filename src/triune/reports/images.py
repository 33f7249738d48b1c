"""Figures as PNG files, for papers and model cards."""

from __future__ import annotations

from typing import Any

from triune.reports import theme
from triune.reports.figures.figure import Figure

WIDTH = 960
"""Pixels of all columns together, before they are doubled for sharp print."""


def png(figure: Figure) -> bytes:
    """All panels of a figure in one image, with its legend."""
    import altair as alt
    import vl_convert

    columns = min(figure.columns, len(figure.panels))
    width = WIDTH // columns - 110
    plots = []
    for panel in figure.panels:
        plot = panel.chart if panel.fixed else panel.chart.properties(width=width)
        plots.append(plot.properties(title=panel.title) if panel.title else plot)
    whole = alt.concat(*plots, columns=columns).resolve_scale(color="independent", shape="independent")
    if figure.legend:
        whole = alt.vconcat(_legend(figure), whole)
    whole = whole.properties(title={"text": figure.title, "fontSize": 16, "offset": 12})
    return bytes(vl_convert.vegalite_to_png(in_paper(whole.to_dict()), scale=2))


def in_paper(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec as it is drawn on paper: what asks for the colour of a page's text gets ink."""
    paper = theme.paper()

    def inked(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: inked(v) for k, v in node.items()}
        if isinstance(node, list):
            return [inked(v) for v in node]
        return paper["text"]["color"] if node == "currentColor" else node

    return {**inked(spec), "config": paper}


def _legend(figure: Figure) -> Any:
    """A row of coloured names."""
    from triune.reports.figures.figure import chart

    names, x = [], 0.0
    for label, colour in figure.legend.items():
        names.append({"label": label, "colour": colour, "x": x})
        x += 7.2 * len(label) + 34
    import altair as alt

    place = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, WIDTH], range=[6, WIDTH], nice=False))
    colour = alt.Color("colour:N", scale=None)
    dots = chart(names).mark_point(filled=True, size=90, opacity=1).encode(x=place, color=colour)
    words = chart(names).mark_text(align="left", dx=10, fontSize=12).encode(x=place, text="label:N")
    return alt.layer(dots, words).properties(width=WIDTH - 60, height=16)
