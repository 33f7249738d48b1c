"""Options that several commands share, and what turns them into a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

Base = Annotated[str | None, typer.Option("--base", "-b", help="Base model: folder, org/name@revision, or demo:base.")]
Experts = Annotated[
    list[str] | None,
    typer.Option("--expert", "-e", help="[LABEL=]MODEL to merge; repeat for each. A folder, a hub name, base+adapter."),
]
MethodName = Annotated[
    str | None, typer.Option("--method", "-m", help="Merge method (`triune methods`); r_tsvm if not given.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="KEY=VALUE: a parameter of the method (weight.LABEL=0.5 for one expert), or seed, dtype, output ...; repeat.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Limit of working memory, such as 2GB, besides what Python and torch take; half of what is free if not given.",
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        "--max-device-memory",
        help="Limit for each GPU, such as 20GB; 80 % of what is free there if not given. A tensor that needs more is "
        "merged on the CPU.",
    ),
]
ShardSize = Annotated[str, typer.Option("--shard-size", help="Largest size of an output file.")]
Threads = Annotated[
    int | None, typer.Option("--threads", "-j", min=1, help="Lanes that work at once; all cores if not given.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda (every GPU), cuda:N, several with commas, or auto.")]
CacheFolder = Annotated[
    str | None,
    typer.Option(
        "--cache", help="Folder that keeps TSVM's decompositions for merges with other weights or another scaling."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def is_recipe(path: str) -> bool:
    """Whether a path is a recipe that is there, so that it is not taken for the output folder."""
    return path.endswith((".yaml", ".yml")) and Path(path).is_file()


def refuse_models(paths: list[str]) -> None:
    """A model does not stand among the paths."""
    from triune.errors import RecipeError

    for path in paths:
        if path.startswith("demo:") and not Path(path).exists():
            raise RecipeError(f"{path} is a model: name it with -e, and its base with --base.")


def recipe_of(
    recipe: str | None, base: str | None, experts: list[str] | None, method: str | None, settings: list[str] | None
) -> Any:
    """A recipe from a file, or from flags where there is none."""
    from triune.errors import RecipeError
    from triune.recipes import load_recipe, recipe_from_flags

    if recipe is not None:
        refuse_models([recipe])
        given = [f for f, v in (("--base", base), ("--expert", experts), ("--method", method)) if v]
        if given:
            raise RecipeError(
                f"{recipe} names the models and the method already: drop {' and '.join(given)}, or the file."
            )
        return load_recipe(Path(recipe), settings or [])
    if not experts:
        raise RecipeError(
            "Nothing to merge: give a recipe file, or --base MODEL and one --expert LABEL=MODEL for each expert."
        )
    experts = _labelled(experts)
    return recipe_from_flags(base=base, experts=experts, method=method or "r_tsvm", settings=settings or [])


def _labelled(experts: list[str]) -> list[str]:
    """``demo:NAME`` is called NAME, unless another expert is. A colon in place of ``=`` is refused.

    >>> _labelled(["demo:helpful", "honest=org/name", "demo:honest", "org/other"])
    ['helpful=demo:helpful', 'honest=org/name', 'demo:honest', 'org/other']
    """
    from triune.errors import RecipeError

    labels = [text.partition("=")[0].removeprefix("demo:") for text in experts]
    found = []
    for text, label in zip(experts, labels, strict=True):
        first, colon, rest = text.partition(":")
        here = any(Path(p).exists() for p in (text, text.partition("+")[0]))
        if colon and first != "demo" and re.fullmatch(r"[\w-]+", first) and not rest.startswith("//") and not here:
            raise RecipeError(f"--expert {text}: there is no such model. Did you mean {first}={rest}?")
        own = text == f"demo:{label}" and re.fullmatch(r"[\w-]+", label) and label != "base"
        found.append(f"{label}={text}" if own and labels.count(label) == 1 and not here else text)
    return found


def shard_bytes_of(text: str) -> int:
    """Of ``--shard-size``. A number without a unit that means less than 1 MB was meant in another unit."""
    from triune.engine.budget import parse_bytes
    from triune.errors import UserError

    size = parse_bytes(text)
    if size < 10**6 and text.strip()[-1].isdigit():
        raise UserError(f"--shard-size {text} is {size} bytes. Did you mean {text.strip()}GB?")
    return size


def memory_of(text: str | None, option: str = "--max-memory") -> int | None:
    from triune.engine.budget import parse_bytes
    from triune.errors import UserError

    try:
        return parse_bytes(text) if text else None
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
