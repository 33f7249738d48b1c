"""``triune align``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from triune.cli._options import AsJson, Quiet


def align(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to compare.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The experiment's folder; `output` of the config if not given.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="KEY.KEY=VALUE overrides the config; repeat.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto or cpu.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, list the stages with their cost, stop.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a whole experiment: train specialists, mix their data, merge them, and compare.

    All dimensions at once (paradigm: static), or one after the other (paradigm: continual). An experiment that was stopped
    continues when the same command is given again. On several GPUs:

    `accelerate launch --num_processes 8 -m triune align CONFIG.yaml`
    """
    import json

    from triune.align.align import align as run
    from triune.align.align import plan
    from triune.align.align_config import AlignConfig
    from triune.align.summary import markdown
    from triune.cli._show import Bar, console
    from triune.config import load_config
    from triune.errors import UserError
    from triune.scorers.devices import find_devices

    checked = load_config(config, AlignConfig, setting or [])
    folder = out or (config.parent / checked.output if checked.output else None)
    if folder is None:
        raise UserError(f"{config} names no output. Add `output: FOLDER` to it, or -o FOLDER.")
    if dry_run:
        _show_plan(plan(checked, folder, folder=config.parent, device=device), as_json)
        return
    with Bar(quiet) as bar:
        done = run(checked, folder, folder=config.parent, device=device, listener=bar)
    if not find_devices(device).first:
        return  # of several processes one speaks
    if as_json:
        print(json.dumps({"out": str(done.out), "already_done": done.already_done, **done.summary}))
    elif not quiet:
        if done.already_done:
            console.print(f"{done.out} is this very experiment, finished; nothing to do.", soft_wrap=True, markup=False)
        print(markdown(done.summary), end="")


def _show_plan(planned: list[Any], as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from rich.table import Table

    from triune.cli._show import stdout

    if as_json:
        print(json.dumps([asdict(p) for p in planned]))
        return
    table = Table("stage", "kind", "made from", "pairs", "tokens", "steps", "", box=None, padding=(0, 2, 0, 0))
    for p in planned:
        cost = (f"{p.usage.pairs:,}", f"{p.usage.tokens:,}", f"{p.usage.steps:,}") if p.usage else ("", "", "")
        state = "finished" if p.finished else ""
        table.add_row(p.stage.name, p.stage.kind, ", ".join(p.stage.inputs) or "base", *cost, state)
    stdout().print(table)
