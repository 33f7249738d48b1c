"""``triune methods``"""

from __future__ import annotations

from typing import Annotated

import typer

from triune.cli._options import AsJson


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, for its reference page.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the merge methods, or show one's reference page."""
    import json

    from rich.table import Table

    from triune.cli._show import stdout
    from triune.methods import METHODS, find

    console = stdout()
    chosen = [find(name)] if name else [find(n) for n in METHODS]
    if as_json:
        print(json.dumps([_record(m) for m in chosen]))
        return
    if name:
        (method,) = chosen
        console.print(f"[bold]{method.name}[/]  {method.title}  {method.paper}", soft_wrap=True)
        console.print()
        console.print(method.doc, markup=False, soft_wrap=True)
        console.print("\nParameters")
        for p in method.parameters:
            default = "required" if p.required else f"default {p.default}"
            console.print(f"  {p.name}: {_range(p)}, {default}", markup=False, soft_wrap=True)
        return
    table = Table("method", "what it does", "parameters", box=None, padding=(0, 2, 0, 0))
    for m in chosen:
        also = f" ({', '.join(m.aliases)})" if m.aliases else ""
        keys = ", ".join(p.name for p in m.parameters if p.name != "semantics")
        table.add_row(m.name + also, m.summary, keys)
    console.print(table)
    console.print(
        "\n`triune methods NAME` shows a method's page: definition, sources, ranges, differences to other programs."
    )


def _range(p: object) -> str:
    from triune.methods._spec import Parameter

    assert isinstance(p, Parameter)
    kind = " | ".join(p.choices) if p.choices else p.kind.__name__
    interval = f" in {p.interval.text}" if p.interval and "inf, inf" not in p.interval.text else ""
    return kind + interval + (", one for each expert or one for all" if p.per_model else "")


def _record(method: object) -> dict[str, object]:
    from triune.methods import Method

    assert isinstance(method, Method)
    return {
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "aliases": list(method.aliases),
        "summary": method.summary,
        "parameters": [
            {
                "name": p.name,
                "type": p.kind.__name__,
                "per_model": p.per_model,
                "default": None if p.required else p.default,
                "required": p.required,
                "interval": p.interval.text if p.interval else None,
                "choices": list(p.choices),
            }
            for p in method.parameters
        ],
    }
