"""What a figure is: panels that Vega draws, a sentence that says what to see, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """Numbers for readers, screen readers, and Markdown."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def shown(self) -> list[list[str]]:
        """The cells as text."""
        return [[number(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    chart: Any
    """Of altair."""
    fixed: bool = False
    """Whether its width is its own, as of a plot whose units must be square, and not that of the place it gets."""


@dataclass(frozen=True)
class Figure:
    """One or several plots with one message."""

    key: str
    """Unique in a report: the anchor, and the name of the file of an exported image."""
    title: str
    see: str
    """What there is to see, in a sentence or two."""
    panels: Sequence[Panel]
    table: Table
    legend: Mapping[str, str] = field(default_factory=dict)
    """Label -> colour, shown once for all panels; what needs a scale keeps Vega's own legend."""
    columns: int = 1
    """Panels side by side where there is room."""


def number(cell: Cell) -> str:
    """Three digits that count.

    >>> number(0.123456), number(1234.0), number(None), number("gsm8k"), number(7)
    ('0.123', '1234', '—', 'gsm8k', '7')
    """
    if cell is None:
        return "—"
    if isinstance(cell, str):
        return cell
    return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def chart(data: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
    """An altair chart of records. What is no number, as the loss of a training that diverged, leaves a gap."""
    import altair as alt

    def drawn(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return alt.Chart(alt.Data(values=[{k: drawn(v) for k, v in record.items()} for record in data]), **settings)
