"""``triune leaderboard``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triune.cli._options import AsJson


def leaderboard(
    stores: Annotated[list[Path], typer.Argument(help="Results stores, or folders that hold a results.db.")],
    style: Annotated[
        str | None, typer.Option("--format", help="terminal, md, csv or latex; by the ending of FILE if not given.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which results count: report, tune or all.")] = "report",
    group: Annotated[
        str | None, typer.Option("--group", help="What is averaged; the group of which most is measured if not given.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Model that all others are compared with, row by row.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write, instead of the screen.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show results of models side by side: by benchmark, by dimension, by H, and overall.

    Several stores are read as one. With --reference each number is marked that is better or worse on the same rows than
    chance explains.
    """
    import json

    from triune.cli._show import stdout
    from triune.errors import UserError, did_you_mean
    from triune.evals.leaderboard import leaderboard as make
    from triune.evals.records import as_json as for_programs
    from triune.evals.store import read
    from triune.evals.tables import FORMATS, terminal
    from triune.output.atomic import write_text

    endings = {ending: name for name, (ending, _) in FORMATS.items()}
    style = style or (endings.get(out.suffix, "terminal") if out else "terminal")
    if style not in FORMATS:
        known = ", ".join(FORMATS)
        raise UserError(f"There is no format {style!r}; there are {known}.{did_you_mean(style, FORMATS)}")
    results = [result for store in stores for result in read(store)]
    board = make(results, group=group, split=split, reference=reference)
    if out:
        try:
            write_text(out, FORMATS[style][1](board))
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror}. Name another file.") from None
    console = stdout()
    if as_json:
        print(json.dumps(for_programs(board), ensure_ascii=False))
    elif out is None and style == "terminal" and console.is_terminal:
        console.print(*terminal(board), sep="\n")
    elif out is None:
        print(FORMATS[style][1](board), end="")
