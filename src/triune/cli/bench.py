"""``triune bench``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from triune.cli._cluster import Address, Executor, check_device, executor_of
from triune.cli._options import AsJson, Quiet
from triune.cli.evaluate import Backend, Batch, Keep, batch_of


def bench(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.yaml", help="What to compare.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder; a run in it continues.")],
    only: Annotated[
        str | None,
        typer.Option("--only", help="Names of models, with commas between them; the others stay as they are."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="KEY.KEY=VALUE overrides the config; repeat.")
    ] = None,
    backend: Backend = "hf",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch: Batch = "auto",
    keep: Keep = False,
    executor: Executor = "local",
    address: Address = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, list the models with their rows and time, stop.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure all models of a suite in one way, choose the settings of merges, and print the leaderboard.

    Settings are chosen on one half of the rows, and numbers are told of the other. A run that was stopped continues when the
    same command is given again. On a cluster all models are measured at once, each on a node or a GPU of its own.
    """
    import json
    from contextlib import nullcontext

    from triune.cli._show import Bar, stdout
    from triune.config import load_config
    from triune.evals.bench import Bench
    from triune.evals.records import as_json as for_programs
    from triune.evals.suite import Suite
    from triune.evals.tables import plain, terminal
    from triune.progress import silent

    checked = load_config(suite, Suite, setting or [])
    names = [n.strip() for n in only.split(",")] if only else []
    check_device(executor, device)
    runner = nullcontext() if dry_run else executor_of(executor, address, out, alone=True, device=device)
    with runner as runs, Bar(quiet) as bar:
        made = Bench(
            checked,
            out,
            folder=suite.parent,
            only=names,
            listener=silent if dry_run else bar,
            backend=backend,
            executor=runs,
            device=runs.device if runs else device,
            batch=batch_of(batch),
        )
        if dry_run:
            _show_plan(made.plan(), as_json)
            return
        done = made.run(keep)
    console = stdout()
    if as_json:
        tuned = {name: vars(t) for name, t in done.tuned.items()}
        print(json.dumps({"out": str(done.out), "tuned": tuned, **for_programs(done.board)}, ensure_ascii=False))
    elif not quiet:
        if console.is_terminal:
            console.print(*terminal(done.board), sep="\n")
        else:
            print(plain(done.board), end="")
        for name, t in done.tuned.items():
            console.print(
                f"{name}: {t.chosen} of {len(t.scores)} settings, by {t.metric} on the tune half.", markup=False
            )


def _show_plan(planned: list[Any], as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from triune.cli._show import stdout

    if as_json:
        print(json.dumps([asdict(p) for p in planned]))
        return
    table = Table("model", "kind", "rows", "answered", "left", "", box=None, padding=(0, 2, 0, 0))
    for p in planned:
        left = "?" if p.seconds is None else _time(p.seconds)
        half = f"{p.half} half" if p.half else ""
        table.add_row(Text(p.name), p.kind, f"{p.rows:,}", f"{p.done:,}", left, half)
    console = stdout()
    console.print(table)
    if any(p.seconds is None for p in planned):
        console.print("How long it takes is known once a model has answered: ? till then.")
    else:
        console.print(
            f"In all about {_time(sum(p.seconds for p in planned))}, by the speed of the models measured so far."
        )


def _time(seconds: float) -> str:
    """
    >>> _time(0.2), _time(90), _time(9000)
    ('0 s', '2 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
