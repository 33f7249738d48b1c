"""``triune plan``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triune.cli._options import (
    AsJson,
    Base,
    Device,
    Experts,
    Memory,
    MethodName,
    Quiet,
    Settings,
    ShardSize,
    Threads,
    memory_of,
    recipe_of,
)


def plan(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE.yaml] [OUT]", help="As for `triune merge`; OUT checks the disk."),
    ] = None,
    base: Base = None,
    expert: Experts = None,
    method: MethodName = None,
    setting: Settings = None,
    threads: Threads = None,
    device: Device = "cpu",
    max_memory: Memory = None,
    shard_size: ShardSize = "5GB",
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="As for `triune merge`; a plan has nothing to check.")
    ] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check a merge and tell what it will cost, without reading a weight.

    Takes the same arguments as `triune merge` and refuses what that would refuse.
    """
    import json

    from rich.console import Console

    from triune.cli._show import plan_json, plan_table
    from triune.engine.budget import default_limit, parse_bytes
    from triune.engine.cores import available_cores, pick_device
    from triune.engine.journal import is_finished, refuse_occupied
    from triune.engine.plan import check_disk, make_plan
    from triune.errors import RecipeError

    given = list(paths or [])
    if len(given) > 2:
        raise RecipeError(f"Expected [RECIPE.yaml] [OUT], got {' '.join(given)}.")
    file = given.pop(0) if len(given) == 2 or (given and not expert) else None
    pick_device(device)
    limit = memory_of(max_memory) or default_limit()
    made = make_plan(
        recipe_of(file, base, expert, method, setting), memory_limit=limit, shard_bytes=parse_bytes(shard_size)
    )
    if given and not is_finished(made, Path(given[0])):
        refuse_occupied(Path(given[0]))
        check_disk(made, Path(given[0]))
    lanes = threads or available_cores()
    if as_json:
        print(json.dumps(plan_json(made, lanes, limit)))
    elif not quiet:
        Console(highlight=False).print(plan_table(made, lanes, limit))
