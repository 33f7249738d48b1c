"""``triune diagnose``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from triune.cli._options import (
    AsJson,
    Base,
    Experts,
    Memory,
    MethodName,
    Quiet,
    Settings,
    Threads,
    memory_of,
    recipe_of,
)


def diagnose(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE.yaml]", help="As for `triune merge`.")] = None,
    base: Base = None,
    expert: Experts = None,
    method: MethodName = None,
    setting: Settings = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for all records, JSON Lines; a stopped run continues.")
    ] = None,
    effects: Annotated[
        str | None, typer.Option("--effects", help="Methods to try on the deltas, by comma; none for no method.")
    ] = None,
    threads: Threads = None,
    max_memory: Memory = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Look at what the experts changed, and what merging would make of it. Reads the weights, loads no model."""
    import json
    from dataclasses import asdict

    from triune.cli._show import Bar, stdout
    from triune.diagnostics.advice import advise
    from triune.diagnostics.diagnose import diagnose as run

    chosen = None if effects is None else [e for e in effects.split(",") if e and e != "none"]
    with Bar(quiet) as bar:
        found = run(
            recipe_of(recipe, base, expert, method, setting),
            output,
            effects=chosen,
            threads=threads,
            max_memory=memory_of(max_memory),
            listener=bar,
        )
    advice = advise(found)
    if as_json:
        print(json.dumps({"header": asdict(found.header), "advice": [asdict(a) for a in advice]}))
    elif not quiet:
        console = stdout()
        for table in _tables(found):
            console.print(table)
            console.print()
        for one in advice:
            console.print(f"[bold]{one.rule}[/]: {one.sentence} ({one.evidence})", soft_wrap=True)
        if not advice:
            console.print("No rule of advice applies.")
        if output:
            console.print(f"\nAll records: {output}", soft_wrap=True)


EXPERT = {
    "relative": "change",
    "outlier_mass": "outliers",
    "kurtosis": "kurtosis",
    "hill": "tail",
    "exact_zero": "zeros",
    "stable_rank": "stable rank",
    "energy_kept": "energy at r/T",
}
PAIR = {
    "conflict": "opposite signs",
    "cancelled": "cancelled",
    "cosine": "cosine",
    "left_overlap": "left overlap",
    "right_overlap": "right overlap",
}


def _tables(found: Any) -> list[Any]:
    """Experts, pairs, effects: means over the model, weighted by entries."""
    from rich.table import Table

    from triune.diagnostics.records import effects_table

    names = found.header.experts
    experts = Table("expert", *EXPERT.values(), box=None, padding=(0, 2, 0, 0))
    for t, name in enumerate(names):
        experts.add_row(name, *(_number(found.mean(found.tensors, t, m)) for m in EXPERT))
    tables = [experts]
    if found.pairs:
        pairs = Table("pair", *PAIR.values(), box=None, padding=(0, 2, 0, 0))
        for i, j in found.pairs:
            numbers = (found.pair_mean(found.tensors, (i, j), m) for m in PAIR)
            pairs.add_row(f"{names[i]}, {names[j]}", *map(_number, numbers))
        tables.append(pairs)
    if found.header.effects:
        heads = (f"{n}: kept, flipped, dropped" for n in names)
        effects = Table("method", *heads, box=None, padding=(0, 2, 0, 0))
        for name, told in effects_table(found):
            cells = (f"{e.kept:.2f}, {e.flipped:.0%}, {e.dropped:.0%}" if e else "" for e in told)
            effects.add_row(name, *cells)
        tables.append(effects)
    return tables


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
