"""``triune merge``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from triune.cli._cluster import Address, Executor, check_merge, executor_of
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

Paths = Annotated[
    list[str] | None, typer.Argument(metavar="[RECIPE.yaml] OUT", help="A recipe, if any, and the output folder.")
]


def merge(
    paths: Paths = None,
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
    gate: Annotated[bool, typer.Option("--gate/--no-gate", help="Check the merged model afterwards.")] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Merge models into a new folder.

    With a recipe in mergekit's format:  `triune merge recipe.yaml out/`

    Without one, by R-TSVM:  `triune merge --base B --expert helpful=H --expert honest=O --expert harmless=S out/`

    An interrupted merge continues when the same command is given again.
    """
    import json

    from triune.cli._show import Bar, console, result_json, show_result
    from triune.engine.cache import idle
    from triune.errors import CheckFailed, RecipeError

    if not paths:
        raise RecipeError("The output folder is missing: add it at the end.")
    refuse_models(paths)
    if len(paths) == 2 and paths[1].endswith((".yaml", ".yml")):
        raise RecipeError(f"{paths[1]} stands where the output folder belongs: the recipe comes first, then OUT.")
    if len(paths) > 2:
        raise RecipeError(f"Expected [RECIPE.yaml] OUT, got {' '.join(paths)}.")
    if len(paths) == 1 and not expert:
        raise RecipeError(
            f"Only {paths[0]} is given. Write `triune merge RECIPE.yaml OUT`, or name --base, --expert and OUT."
        )
    out = Path(paths[-1])
    recipe = recipe_of(paths[0] if len(paths) == 2 or is_recipe(paths[0]) else None, base, expert, method, setting)
    limit = memory_of(max_memory)
    check_merge(executor, threads, device)
    runner = executor_of(executor, address, out, limit=limit)
    from triune.engine.merge import merge as run

    start = time.monotonic()
    with runner as runs, Bar(quiet) as bar:
        result = run(
            recipe,
            out,
            threads=threads,
            device=device,
            max_memory=limit,
            max_device_memory=memory_of(max_device_memory, "--max-device-memory"),
            shard_bytes=shard_bytes_of(shard_size),
            gate=gate,
            listener=bar,
            executor=runs,
            cache=cache,
        )
    if as_json:
        print(json.dumps(result_json(result)))
    elif not quiet:
        if cache is not None and (note := idle(cache, result.plan.jobs, result.plan.method.name)):
            console.print(f"  note     {note}", soft_wrap=True)
        show_result(result, time.monotonic() - start)
    if not result.passed:
        failed = " ".join(c.sentence for c in result.checks if c.passed is False)
        raise CheckFailed(f"The merge is written to {out}, but it failed its checks. {failed}")
