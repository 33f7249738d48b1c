"""``triune data``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triune.cli._options import AsJson, Quiet

if TYPE_CHECKING:
    from triune.data.check import Report
    from triune.data.load import Source
    from triune.data.overlap import Evaluation
    from triune.data.tokens import Encoder

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Check preference pairs, and prepare them for training.",
)

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCES...", help="Files, folders, or org/name[/folder][@revision] on the hub.")
]
Dimension = Annotated[
    str | None, typer.Option("--dimension", "-d", help="What rows teach that do not say: helpfulness, honesty ...")
]
SchemaName = Annotated[
    str | None, typer.Option("--schema", help="How the rows are written; found out from their columns if not given.")
]
Split = Annotated[
    str | None, typer.Option("--split", help="Of files: train or val for all rows. Of the hub: what to read, as A+B.")
]
Against = Annotated[
    list[str] | None, typer.Option("--against", help="File or folder of evaluation prompts to compare with; repeat.")
]
BaseModel = Annotated[str | None, typer.Option("--base", "-b", help="The model to be trained: its tokenizer counts.")]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=2, help="Tokens of a prompt with its answer; needs --base.")
]


@app.command()
def check(
    sources: Sources,
    dimension: Dimension = None,
    schema: SchemaName = None,
    split: Split = None,
    against: Against = None,
    base: BaseModel = None,
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Tell what preference pairs are like, and what is wrong with them.

    Exit code 1 if something would spoil a training or an evaluation.
    """
    import json
    from dataclasses import asdict

    from triune.data.check import check as examine
    from triune.data.load import read
    from triune.errors import CheckFailed

    encoder = _encoder(base, max_length)
    places = _sources(sources, dimension, schema, split)
    prompts, _ = _evaluation(against, places)
    report = examine((one for place in places for one in read(place)), encoder, max_length, prompts)
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        _show(report)
    if report.errors:
        raise CheckFailed(f"The pairs have errors of {len(report.errors)} kind(s): see the report.")


@app.command()
def prepare(
    sources: Sources,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file to write, ending with .jsonl; its manifest goes beside it.")
    ],
    dimension: Dimension = None,
    schema: SchemaName = None,
    split: Split = None,
    val: Annotated[
        float | None,
        typer.Option(
            "--val",
            help="Share of prompts for validation, drawn anew. If not given, the rows' own splits stay; "
            "0.1 is drawn where all rows are for training.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the drawn validation split.")] = 0,
    against: Against = None,
    base: BaseModel = None,
    max_length: MaxLength = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write pairs without doubles and evaluation prompts, each prompt in one split.

    Rows that are no pairs are left out and counted, as are pairs longer than --max-length; a file that is no preference
    data stops the work. The same command gives the same bytes.
    """
    from triune.cli._show import console
    from triune.data.load import read
    from triune.data.pairs import counts
    from triune.data.prepare import check_out, told, write_prepared
    from triune.data.prepare import prepare as make

    encoder = _encoder(base, max_length)
    places = _sources(sources, dimension, schema, split)
    check_out(out, places)
    prompts, files = _evaluation(against, places)
    inputs = [(place, list(read(place))) for place in places]
    settings: dict[str, Any] = {"seed": seed, "val_fraction": 0.1 if val is None else val}
    settings |= {"keep_splits": None if val is None else False, "max_length": max_length}
    found = (one for _, rows in inputs for one in rows)
    prepared = make(found, **settings, against=prompts, encoder=encoder)
    manifest = write_prepared(out, prepared, inputs, files, **settings, base=base)
    if as_json:
        print(manifest.read_text(encoding="utf-8"), end="")
    elif not quiet:
        for name in ("train", "val"):
            rows = counts(p for p in prepared.pairs if p.split == name)
            each = ", ".join(f"{n} {d}" for d, n in rows.items())
            console.print(f"  {name:<5}  {sum(rows.values())} pairs{f': {each}' if each else ''}", soft_wrap=True)
        if prepared.removed:
            console.print(f"  left out  {told(prepared.removed)}", soft_wrap=True)
        console.print(f"{out}: {len(prepared.pairs)} pairs; {manifest.name} says how they were made.", soft_wrap=True)


def _sources(paths: list[str], dimension: str | None, schema: str | None, split: str | None) -> list[Source]:
    from triune.data.load import Source, refuse_doubles

    sources = [Source(path, dimension, schema, split) for path in paths]
    refuse_doubles(sources)
    return sources


def _evaluation(against: list[str] | None, sources: list[Source]) -> tuple[list[Evaluation], list[Path]]:
    from triune.data.overlap import evaluation_prompts
    from triune.data.rows import files_of

    named = {file.resolve() for source in sources for file in files_of(source.path) or ()}
    return evaluation_prompts(against or [], skip=named)


def _encoder(base: str | None, max_length: int | None) -> Encoder | None:
    from triune.data.tokens import load_encoder
    from triune.errors import UserError

    if max_length is not None and base is None:
        raise UserError("--max-length counts tokens of a model: add --base MODEL.")
    return load_encoder(base) if base else None


def _show(report: Report) -> None:
    from rich.table import Table

    from triune.cli._show import stdout

    console = stdout()
    tokens = any(group.tokens for group in report.groups)
    table = Table("source, dimension, split", box=None, padding=(0, 1, 0, 0))
    for name in ("pairs", "prompt", "chosen", "rejected", "p95", "max", "longer", "ratio"):
        table.add_column(name, justify="right")
    for g in report.groups:
        lengths = g.tokens or g.characters
        medians = [f"{lengths[part].median:g}" for part in ("prompt", "chosen", "rejected")]
        ends = [f"{lengths['pair'].p95}", f"{lengths['pair'].max}"]
        place = f"{g.source}, {g.dimension}, {g.split}"
        table.add_row(place, f"{g.pairs}", *medians, *ends, f"{g.longer:.0%}", f"{g.ratio:.2f}")
    console.print(table)
    ties = f", {report.ties} rows without a preference passed over" if report.ties else ""
    console.print(
        f"\n{report.pairs} pairs{ties}. Lengths in {'tokens' if tokens else 'characters'}: medians; p95 and max of the "
        "prompt with the longer answer. longer: how often chosen has more characters; ratio: mean characters of chosen "
        "over rejected.",
        soft_wrap=True,
    )
    for mark, lines in (("[red]error[/]  ", report.errors), ("[yellow]warning[/]", report.warnings)):
        for line in lines:
            console.print(mark, end=" ")
            console.print(line, markup=False, soft_wrap=True)
    if not report.errors and not report.warnings:
        console.print("Nothing is wrong with them.")
