"""``triune report``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Merged folders, diagnoses, run folders or results.db, folders of train or align, answers of the demo.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="report.html, report.md (images beside it), or a folder for images."),
    ] = None,
    style: Annotated[
        str | None, typer.Option("--format", help="html, md or png; by the ending of OUT if not given.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="What the report is called.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Which results count: report, tune or all; of a bench report, else all, if not given."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Model that others are compared with; the base if not given.")
    ] = None,
) -> None:
    """Make one page of merges, measurements and trainings: figures, tables, answers, in a file that opens anywhere.

    Inputs are recognised by what they hold, in any number, finished or not. Reads records, never a weight.
    """
    from triune.reports.report import report as make

    usual = {"md": "report.md", "png": "report-figures"}.get(style or "", "report.html")
    print(make(inputs, out or usual, style=style, title=title, split=split, reference=reference))
