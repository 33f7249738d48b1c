"""A report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from triune import __version__
from triune.reports import theme
from triune.reports.figures.figure import Figure, Table
from triune.reports.inputs import Answers
from triune.reports.sections import Code, Ranking, Section, Text

KINDS = {Text: "text", Code: "code", Table: "table", Figure: "figure", Ranking: "ranking", Answers: "answers"}


def html(title: str, sections: Sequence[Section], notes: Sequence[str], origin: str) -> str:
    """The page. All that is drawn stands in it as tables, too, so it can be read without scripts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("triune.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sortable"] = sort_key
    environment.globals["zip"] = zip
    scripts = [_part("report.js")]
    specs = {f"{f.key}-{i}": _spec(f, i) for f in _figures(sections) for i in range(len(f.panels))}
    if specs:
        scripts.insert(0, _vega())
    return environment.get_template("report.html.j2").render(
        title=title,
        origin=origin,
        version=__version__,
        sections=sections,
        notes=notes,
        kind=lambda block: KINDS[type(block)],
        style=_part("report.css"),
        scripts=scripts,
        hashes=" ".join(f"'sha256-{_digest(s)}'" for s in scripts),
        data=_json({"config": theme.page(), "specs": specs}),
    )


def _figures(sections: Sequence[Section]) -> Iterator[Figure]:
    for section in sections:
        yield from (b for b in section.blocks if isinstance(b, Figure))


def _spec(figure: Figure, panel: int) -> dict[str, Any]:
    """Vega-Lite, as wide as the place it gets; its description is what a screen reader says of the drawing."""
    one = figure.panels[panel]
    drawn = one.chart if one.fixed else one.chart.properties(width="container")
    described = ": ".join(filter(None, (figure.title, one.title)))
    found: dict[str, Any] = drawn.properties(
        description=f"{described}. {figure.see} The numbers are in the table below the figure."
    ).to_dict()
    del found["config"]
    found.pop("$schema", None)
    return found


def _json(content: Any) -> str:
    """JSON inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def sort_key(text: str) -> str:
    """What a column is sorted by: the first number of a cell, or its text.

    >>> sort_key("≈44.4†▲"), sort_key("base"), sort_key("—"), sort_key("-0.5")
    ('44.4', 'base', '', '-0.5')
    """
    if text in ("—", ""):
        return ""
    number = re.match(r"≈?([+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?)", text)
    return number[1].replace(",", "") if number else text


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed, from the package that also makes the images."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _part(name: str) -> str:
    return (files("triune.reports") / "templates" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
