"""``triune plan``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triune.cli._cluster import Address, Executor, check_merge, check_names
from triune.cli._options import (
    AsJson,
    Base,
    CacheFolder,
    Device,
    DeviceMemory,
    Experts,
    Memory,
    MethodName,
    Quiet,
    Settings,
    ShardSize,
    Threads,
    is_recipe,
    memory_of,
    recipe_of,
    refuse_models,
    shard_bytes_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from triune.engine.costs import Class


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
    max_device_memory: DeviceMemory = None,
    shard_size: ShardSize = "5GB",
    cache: CacheFolder = None,
    executor: Executor = "local",
    address: Address = None,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="As for `triune merge`; a plan has nothing to check.")
    ] = True,
    time: Annotated[
        bool, typer.Option("--time", help="Estimate the time too, at rates measured now on this machine.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check a merge and tell what it will cost, without reading a weight.

    Takes the same arguments as `triune merge` and refuses what that would refuse. With --executor ray no cluster is
    asked: time is that of this machine, and whether the nodes have the memory is not checked, unless --max-memory
    tells it.
    """
    import json

    from triune.cli._show import plan_json, plan_table, stdout
    from triune.engine.budget import default_limit, device_limits, human
    from triune.engine.cache import Cache, own_folder
    from triune.engine.cores import available_cores, pick_devices
    from triune.engine.costs import calibrate, classes
    from triune.engine.journal import is_finished, refuse_occupied
    from triune.engine.plan import check_disk, make_plan
    from triune.errors import RecipeError

    given = list(paths or [])
    refuse_models(given)
    if len(given) > 2:
        raise RecipeError(f"Expected [RECIPE.yaml] [OUT], got {' '.join(given)}.")
    file = given.pop(0) if len(given) == 2 or (given and (not expert or is_recipe(given[0]))) else None
    check_names(executor, address)
    check_merge(executor, threads, device)
    # What a cluster's nodes offer only the cluster knows.
    limit = memory_of(max_memory) or (default_limit() if executor == "local" else None)
    devices = device_limits(pick_devices(device), memory_of(max_device_memory, "--max-device-memory"), limit or 0)
    made = make_plan(
        recipe_of(file, base, expert, method, setting),
        memory_limit=limit,
        shard_bytes=shard_bytes_of(shard_size),
        devices=devices,
    )
    if given and not is_finished(made, Path(given[0])):
        refuse_occupied(Path(given[0]))
        check_disk(made, Path(given[0]))
    there: set[str] = set()
    if cache is not None:
        folder = own_folder(cache, given[0] if given else None)
        there = Cache(folder, made.files()).there(made.jobs, next(iter(devices)))
    kept = cache_of(made, cache, len(there)) if cache is not None else None
    lanes = threads or available_cores()
    groups = classes(made.jobs, there)
    rates = calibrate() if time else None
    if as_json:
        print(
            json.dumps(
                {
                    **plan_json(made, lanes, limit),
                    **({"cache": kept} if kept else {}),
                    **costs_json(groups, rates, lanes),
                }
            )
        )
    elif not quiet:
        table = plan_table(made, lanes, limit)
        if kept:
            told = (
                f"{kept['there']} of {kept['tensors']} decompositions are in {cache}; all take at most "
                f"{human(kept['most_bytes'])}"
            )
            table.add_row("cache", kept.get("note", told))
        console = stdout()
        console.print(table)
        console.print(costs_table(groups, rates, lanes))


def cache_of(made: Any, folder: str, there: int) -> dict[str, Any]:
    """What of a plan's decompositions is kept, and how large they may be."""
    from triune.engine.cache import decomposed, idle, most_bytes

    jobs = decomposed(made.jobs)
    return {
        "folder": folder,
        "tensors": len(jobs),
        "there": there,
        "most_bytes": sum(map(most_bytes, jobs)),
        **({"note": note} if (note := idle(folder, made.jobs, made.method.name)) else {}),
    }


def costs_json(groups: Sequence[Class], rates: Mapping[str, float] | None, lanes: int) -> dict[str, Any]:
    """What each class of tensors takes. Seconds are of the whole class, shared by all lanes."""
    told = [
        {
            "projection": c.name,
            "shape": list(c.shape),
            "route": c.route,
            "count": c.count,
            "bytes": c.nbytes,
            "flops": c.flops,
            "cost": dict(c.cost),
            **({"seconds": c.seconds(rates) / lanes} if rates else {}),
        }
        for c in groups
    ]
    total = {"seconds": sum(c.seconds(rates) for c in groups) / lanes, "rates": rates} if rates else {}
    return {"classes": told, "flops": sum(c.flops for c in groups), **total}


def costs_table(groups: Sequence[Class], rates: Mapping[str, float] | None, lanes: int) -> Table:
    """The same for people."""
    from rich.table import Table

    from triune.engine.budget import human

    table = Table("class", "shape", "route", box=None, padding=(0, 2, 0, 0))
    for title in ("tensors", "bytes", "GFLOP", *(["seconds"] if rates else [])):
        table.add_column(title, justify="right")
    for c in groups:
        seconds = [f"{c.seconds(rates) / lanes:.1f}"] if rates else []
        shape = " x ".join(map(str, c.shape))
        table.add_row(c.name, shape, c.route, str(c.count), human(c.nbytes), _gflop(c.flops), *seconds)
    seconds = [f"{sum(c.seconds(rates) for c in groups) / lanes:.1f}"] if rates else []
    total = human(sum(c.nbytes for c in groups)), _gflop(sum(c.flops for c in groups))
    table.add_row("all", "", "", str(sum(c.count for c in groups)), *total, *seconds, style="bold")
    return table


def _gflop(flops: float) -> str:
    """
    >>> _gflop(2.25e12), _gflop(113e6), _gflop(69_000)
    ('2,250', '0.113', '0')
    """
    billions = flops / 1e9
    return f"{billions:,.0f}" if billions >= 100 else f"{billions:.3g}" if billions >= 0.001 else "0"
