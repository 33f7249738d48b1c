"""``triune eval``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from triune.cli._options import AsJson, Quiet

Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="Folder of benchmark rows, or hub; TRIUNE_DATA, or a built-in smoke test if not given."
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", help="Rows of each benchmark.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run code that a model wrote, in a sandbox.")]
Backend = Annotated[
    str, typer.Option("--backend", help="hf (transformers), vllm, or openai (an endpoint, with --url).")
]
Batch = Annotated[str, typer.Option("--batch", help="Rows at a time, or auto: by their length and the memory.")]
Keep = Annotated[bool, typer.Option("--keep", help="Keep the weights of merges that were made to be measured.")]


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="A folder, adapter, hub id, demo:NAME, or recipe.yaml."),
    ] = None,
    tasks: Annotated[
        str, typer.Option("--tasks", "-t", help="Groups and benchmarks, with commas between them.")
    ] = "triune_3h_offline",
    data: Data = None,
    limit: Limit = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder; a run in it continues.")] = Path(
        "triune-eval"
    ),
    allow_code: AllowCode = False,
    backend: Backend = "hf",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch: Batch = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Of the examples and of intervals.")] = 0,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="What a model is called; one for each, or none.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Of the endpoint: .../v1/completions.")] = None,
    keep: Keep = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the answers of RUN again, without a model; MODELs by name.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure models on the benchmarks of helpfulness, honesty and harmlessness.

    What is answered already is not asked again: the same command continues a run that was stopped, and more models, rows
    or benchmarks are added to those in its folder. Compare them with `triune leaderboard RUN --split all`.
    """
    import json

    from triune.cli._show import Bar
    from triune.evals.rescore import rescore as again
    from triune.evals.run import How, Run

    how = How(
        tasks=tasks,
        data=data,
        limit=limit,
        allow_code=allow_code,
        backend=backend,
        device=device,
        batch=batch_of(batch),
        seed=seed,
        url=url,
    )
    with Bar(quiet) as bar:
        run = Run(how, out, bar)
        if rescore:
            with run.locked():
                results = again(run, models or ())
        else:
            candidates = run.candidates(models or [], name or [])
            with run.locked():
                results = [r for c in candidates for r in run.measure(c, keep=keep)]
    shown = [r for r in results if r.split == "all"] or results
    if as_json:
        print(json.dumps({"out": str(out), "results": [_record(r) for r in shown], "left_out": _names(run.left_out)}))
    elif not quiet:
        _show(shown, run, out)


def batch_of(text: str) -> int | None:
    from triune.errors import UserError

    if text == "auto":
        return None
    if not text.isdecimal():
        raise UserError(f"--batch must be auto or a number, got {text!r}.")
    return int(text)


def _names(benchmarks: Any) -> list[str]:
    return [b.name for b in benchmarks]


def _record(result: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from triune.evals.benchmark import BENCHMARKS

    full_n = BENCHMARKS[result.benchmark].items  # n is fewer where a slice was measured
    return {**{k: v for k, v in asdict(result).items() if k != "scores"}, "full_n": full_n}


def _show(results: Any, run: Any, out: Path) -> None:
    """A line for each benchmark, a column for each model."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from triune.cli._show import stdout

    models = list(dict.fromkeys(r.model.fingerprint for r in results))
    names = {r.model.fingerprint: r.model.name for r in results}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for head in ("benchmark", "H", "n", *(names[m] for m in models), "scored by"):
        table.add_column(Text(head), overflow="fold")
    for benchmark, task in run.tasks.items():
        row = {r.model.fingerprint: r for r in results if r.benchmark == benchmark}
        title = f"{task.benchmark.title} {'↑' if task.benchmark.higher_is_better else '↓'}"
        if not row:
            table.add_row(title, task.benchmark.h, "", *("—" for _ in models), "a judge, from the samples")
            continue
        any_one = next(iter(row.values()))
        cells = [_cell(row[m]) if m in row else "—" for m in models]
        how = f"{any_one.scorer}{'; ≈ ' + any_one.proxy if any_one.proxy else ''}"
        n, full_n = any_one.n, task.benchmark.items
        table.add_row(title, any_one.h, f"{n:,} of {full_n:,}" if n < full_n else f"{n:,}", *cells, how)
    for b in run.left_out:
        table.add_row(b.title, b.h, "", *("—" for _ in models), "left out: runs code, needs --allow-code")
    console = stdout()
    if any(r.proxy.startswith("smoke test") for r in results):
        console.print("SMOKE TEST on built-in rows: no measurement. Name a folder of rows with --data.")
    console.print(table)
    console.print(
        f"Percent, with 95% intervals. Samples and results are in {out}. Compare models: "
        f"triune leaderboard {out} --split all",
        soft_wrap=True,
        markup=False,
    )


def _cell(result: Any) -> str:
    near = "≈" if result.proxy else ""
    return f"{near}{100 * result.value:.1f} [{100 * result.low:.0f}, {100 * result.high:.0f}]"
