"""A leaderboard for people: on a terminal, in Markdown, in LaTeX."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from triune.evals.benchmark import HS
from triune.evals.leaderboard import Board, Cell, Column, Line
from triune.evals.notes import notes
from triune.evals.records import as_csv

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Field:
    """What stands in one place of a table."""

    text: str
    interval: str = ""
    place: int = 0


@dataclass(frozen=True)
class Section:
    """One table of several: a leaderboard in one piece would be wider than any page."""

    title: str
    heads: tuple[str, ...]
    below: tuple[str, ...]
    """Under each head, smaller."""
    rows: tuple[tuple[Field, ...], ...]


def sections(board: Board) -> list[Section]:
    """The overall numbers, what is kept of the specialists, the dimensions, and the benchmarks of each H."""
    by_level = {level: [c for c in board.columns if c.level == level] for level in ("overall", "h", "dimension")}
    found = [_overall(board, by_level["overall"] + by_level["h"]), _section(board, "Dimensions", by_level["dimension"])]
    if board.lines[0].retention:
        found.insert(1, _kept(board))
    for h in HS:
        columns = [c for c in board.columns if c.level == "benchmark" and c.benchmarks[0].h == h]
        if columns:
            found.append(_section(board, f"Benchmarks, {h}", columns))
    return found


def _section(board: Board, title: str, columns: list[Column]) -> Section:
    return Section(
        title,
        ("model", *(f"{c.title} {'↑' if c.higher_is_better else '↓'}" for c in columns)),
        ("", *(c.rows for c in columns)),
        tuple((Field(line.label), *(_field(line.cells.get(c.name)) for c in columns)) for line in board.lines),
    )


def _overall(board: Board, columns: list[Column]) -> Section:
    middle = _section(board, "Overall", columns)
    rows = []
    for line, (label, *fields) in zip(board.lines, middle.rows, strict=True):
        rank = Field("—" if line.rank is None else str(line.rank))
        rows.append((rank, label, Field(line.model.kind), *fields, _balance(line)))
    heads = ("rank", "model", "kind", *middle.heads[1:], "balance ↑")
    return Section(middle.title, heads, ("",) * len(heads), tuple(rows))


def _kept(board: Board) -> Section:
    experts = list(board.lines[0].retention)
    rows = tuple(
        (
            Field(line.label),
            *(_share(line.retention[e], line.cells.get(board.specialty(e))) for e in experts),
        )
        for line in board.lines
    )
    return Section("Kept of each specialist", ("model", *experts), ("",) * (1 + len(experts)), rows)


def _share(kept: float | None, basis: Cell | None) -> Field:
    if kept is None or basis is None:
        return Field("—")
    return Field(("≈" if basis.proxies else "") + f"{100 * kept:.1f}" + ("†" if basis.found.missing else ""))


def _field(cell: Cell | None) -> Field:
    if cell is None:
        return Field("—")
    text = ("≈" if cell.proxies else "") + f"{100 * cell.found.value:.1f}" + ("†" if cell.found.missing else "")
    sign = {1: "▲", 0: "", -1: "▼"}[cell.sign]
    return Field(text + sign, f"[{100 * cell.found.low:.1f}, {100 * cell.found.high:.1f}]", cell.place)


def _balance(line: Line) -> Field:
    if line.balance is None:
        return Field("—")
    h, cell = line.balance
    return Field(_field(replace(cell, comparison=None)).text, h)


def _title(board: Board) -> str:
    models = f"{len(board.lines)} model{'s' * (len(board.lines) > 1)}"
    there = sum(c.level == "benchmark" for c in board.columns)
    part = f" ({there} of its {there + len(board.unmeasured)} benchmarks)" if board.unmeasured else ""
    return f"{board.group}{part}, split {board.split}, {models}"


def terminal(board: Board) -> Iterator[RenderableType]:
    """What rich draws."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    yield Text(_title(board), style="bold")
    for section in sections(board):
        table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        for head, below in zip(section.heads, section.below, strict=True):
            table.add_column(Text(head).append(f"\n{below}" if below else "", style="dim"), overflow="fold")
        for row in section.rows:
            cells = []
            for field in row:
                cell = Text(field.text, style=("", "bold", "underline")[field.place])
                cells.append(Text.assemble(cell, (f"\n{field.interval}", "dim")) if field.interval else cell)
            table.add_row(*cells)
        yield table
    for note in notes(board):
        yield Text(note)


def plain(board: Board) -> str:
    """What the terminal shows, without colours, and wide enough for any of the tables."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=200, highlight=False)
    for part in terminal(board):
        console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def markdown(board: Board) -> str:
    """Best in bold, second underlined."""

    def shown(field: Field) -> str:
        around = ("{}", "**{}**", "<ins>{}</ins>")[field.place]
        return " ".join(filter(None, (around.format(_escape(field.text, _MARKDOWN)), field.interval)))

    parts = [f"## {_title(board)}"]
    for section in sections(board):
        heads = [
            _escape(head, _MARKDOWN) + (f"<br>{_escape(below, _MARKDOWN)}" if below else "")
            for head, below in zip(section.heads, section.below, strict=True)
        ]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [f"| {' | '.join(map(shown, row))} |" for row in section.rows]
        parts.append(f"### {section.title}\n\n" + "\n".join(lines))
    parts.append("\n".join(f"- {_escape(note, _MARKDOWN)}" for note in notes(board)))
    return "\n\n".join(parts) + "\n"


def latex(board: Board) -> str:
    """Tables for ``booktabs``: best in bold, second underlined, intervals small."""

    def shown(field: Field) -> str:
        around = ("%s", r"\textbf{%s}", r"\underline{%s}")[field.place]
        small = rf" {{\scriptsize {_escape(field.interval, _LATEX)}}}" if field.interval else ""
        return around % _escape(field.text, _LATEX) + small

    def head(title: str, below: str) -> str:
        small = rf" \\ {{\scriptsize {_escape(below, _LATEX)}}}" if below else ""
        return rf"\shortstack[l]{{{_escape(title, _LATEX)}{small}}}"

    parts = [r"% \usepackage{booktabs}"]
    for section in sections(board):
        heads = " & ".join(map(head, section.heads, section.below))
        parts += [
            r"\begin{table*}",
            rf"\caption{{{section.title}: {_escape(_title(board), _LATEX)}.}}",
            rf"\begin{{tabular}}{{{'l' * len(section.heads)}}}",
            r"\toprule",
            rf"{heads} \\",
            r"\midrule",
            *(rf"{' & '.join(map(shown, row))} \\" for row in section.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    parts += [r"{\footnotesize", *(rf"{_escape(note, _LATEX)}\par" for note in notes(board)), "}"]
    return "\n".join(parts) + "\n"


_MARKDOWN = {c: f"\\{c}" for c in "\\|*_<`"}
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "≈": r"$\approx$",
    "†": r"$^\dagger$",
    "▲": r"$^\bigtriangleup$",
    "▼": r"$^\bigtriangledown$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "—": "---",
}


def _escape(text: str, special: Mapping[str, str]) -> str:
    return "".join(special.get(c, c) for c in text)


FORMATS: Mapping[str, tuple[str, Callable[[Board], str]]] = {
    "terminal": (".txt", plain),
    "md": (".md", markdown),
    "csv": (".csv", as_csv),
    "latex": (".tex", latex),
}
"""Name -> (ending of its files, what makes it)."""
