"""Pages that are written by the code they describe: methods, benchmarks, commands, config schemas.

MkDocs calls the ``on_`` functions. A page that nobody has to remember to write cannot be out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Spell out the folders of the navigation, which hold generated pages only."""
    pages = dict(_pages())

    def spelled(item: Any) -> Any:
        if isinstance(item, list):
            return [spelled(i) for i in item]
        if isinstance(item, dict):
            return {title: spelled(i) for title, i in item.items()}
        return [p for p in pages if p.startswith(item)] if item.endswith("/") else item

    config.nav = spelled(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in _pages():
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        files.append(File.generated(config, f"examples/{path.name}", content=path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / "docs").glob("*.schema.json")):
        files.append(File.generated(config, f"schemas/{path.name}", content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The repository's links, as the site has them."""
    markdown = markdown.replace("](../examples/", "](examples/")
    return re.sub(r"\]\((\w+\.schema\.json)\)", r"](schemas/\1)", markdown)


def _pages() -> Iterator[tuple[str, str]]:
    yield from _methods()
    yield from _benchmarks()
    yield from _commands()
    for name, title in (("recipe", "Recipe"), ("train", "Training config"), ("align", "Experiment config")):
        yield f"schema/{name}.md", _schema(title, json.loads((ROOT / f"docs/{name}.schema.json").read_text()))


def _methods() -> Iterator[tuple[str, str]]:
    from triune.methods import METHODS, find

    found = [find(name) for name in METHODS]
    lines = [f"| [{m.name}]({m.name}.md) | {m.summary} | [paper]({m.paper}) |" for m in found]
    yield "methods/index.md", "# Methods\n\n" + _table("method | what it does | source", lines)
    for m in found:
        rows = []
        for p in m.parameters:
            kind = " or ".join(p.choices) if p.choices else p.kind.__name__
            interval = p.interval.text if p.interval else ""
            each = "each expert" if p.per_model else "the merge"
            default = "required" if p.required else str(p.default)
            rows.append(f"| `{p.name}` | {kind} | {interval} | {each} | {default} |")
        also = f"\n\nAlso called {', '.join(f'`{a}`' for a in m.aliases)}." if m.aliases else ""
        yield (
            f"methods/{m.name}.md",
            f"# {m.name}\n\n{m.title}: <{m.paper}>{also}\n\n```sh\ntriune merge --method {m.name} ...\n```\n\n"
            f"{_table('parameter | type | range | of | default', rows)}\n\n## Definition\n\n```text\n{m.doc}\n```\n",
        )


def _benchmarks() -> Iterator[tuple[str, str]]:
    from triune.evals.benchmark import BENCHMARKS, GROUPS

    lines = [
        f"| [{b.title}]({b.name}.md) | {b.h} | {b.dimension} | {b.metric} {'↑' if b.higher_is_better else '↓'} | {b.needs} |"
        for b in BENCHMARKS.values()
    ]
    groups = "\n".join(f"- `{name}`: {', '.join(names)}" for name, names in GROUPS.items())
    head = "# Benchmarks\n\n" + _table("benchmark | H | dimension | metric | needs", lines)
    yield "benchmarks/index.md", f"{head}\n\n## Groups\n\n{groups}\n"
    for b in BENCHMARKS.values():
        facts = {
            "H, dimension": f"{b.h}, {b.dimension}",
            "metric": f"{b.metric}, {'higher' if b.higher_is_better else 'lower'} is better",
            "chance level": b.chance,
            "official scoring": b.official_metric,
            "stands in": b.proxy or "is the official number, on as many rows as are given",
            "rows of the full set": f"{b.items:,}",
            "source": b.dataset,
            "revision": b.revision,
            "licence": b.licence,
            "prompt version": b.prompt_version,
            "needs": {"none": "nothing", "code": "`--allow-code`", "judge": "`triune judge`"}[b.needs],
        }
        rows = [f"| {key} | {value} |" for key, value in facts.items()]
        how = f"```sh\ntriune eval MODEL --tasks {b.name} --data DATA -o runs/{b.name}\n```"
        yield f"benchmarks/{b.name}.md", f"# {b.title}\n\n{_table('what | ', rows)}\n\n{how}\n"


def _commands() -> Iterator[tuple[str, str]]:
    import click
    from typer.main import get_command

    from triune.cli.main import COMMANDS, build

    group: Any = get_command(build())
    parent = click.Context(group, info_name="triune")
    lines = [f"| [triune {name}]({name}.md) | {summary} |" for name, (_, summary) in COMMANDS.items()]
    yield "commands/index.md", "# Commands\n\n" + _table("command | what it does", lines)
    for name in COMMANDS:
        yield (
            f"commands/{name}.md",
            f"# triune {name}\n\n" + "\n".join(_help(group.get_command(parent, name), name, parent)),
        )


def _help(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = type(parent)(command, info_name=name, parent=parent)
    yield f"```text\n{command.get_help(context)}\n```\n"
    for sub in getattr(command, "commands", {}):
        yield f"## {sub}\n"
        yield from _help(command.commands[sub], sub, context)


def _schema(title: str, schema: Mapping[str, Any]) -> str:
    parts = [f"# {title}\n\n{schema.get('description', '')}\n", _fields(schema)]
    for name, part in schema.get("$defs", {}).items():
        if "properties" in part:
            parts.append(f"## {name}\n\n{part.get('description', '')}\n\n{_fields(part)}")
    return "\n\n".join(parts) + "\n"


def _fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for key, field in schema.get("properties", {}).items():
        default = "required" if key in required else f"`{json.dumps(field['default'])}`" if "default" in field else ""
        told = str(field.get("description", "")).replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{key}` | {_type(field)} | {default} | {told} |")
    return _table("key | type | default | what it says", rows)


def _type(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = str(field["$ref"]).rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})" if "_" not in name else name
    if "enum" in field:
        return ", ".join(f"`{v}`" for v in field["enum"])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(f) for f in field["anyOf"]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "anything"))


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([f"| {head} |", "|" + " --- |" * len(head.split("|")), *rows])
