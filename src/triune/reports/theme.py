"""How Vega draws: on a page in the page's own colours, on paper in black on white."""

from __future__ import annotations

from typing import Any


def page() -> dict[str, Any]:
    """Text, axes and grid take the colour of the text around them, so that one drawing fits light, dark and print."""
    return config("currentColor", "transparent", "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif")


def paper() -> dict[str, Any]:
    """For images."""
    return config("#1c1c1c", "white", "Liberation Sans, Arial, Helvetica, sans-serif")


def config(ink: str, background: str, font: str) -> dict[str, Any]:
    """A Vega-Lite config."""
    lines = {"domainColor": ink, "tickColor": ink, "gridColor": ink, "domainOpacity": 0.4, "tickOpacity": 0.4}
    words = {
        "labelColor": ink,
        "titleColor": ink,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    return {
        "background": background,
        "font": font,
        "padding": 4,
        "axis": {**lines, **words, "gridOpacity": 0.13},
        "legend": {**words, "labelFontSize": 11},
        "title": {"color": ink, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "text": {"color": ink},
        "view": {"stroke": None},
    }
