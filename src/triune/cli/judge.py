"""``triune judge``"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triune.cli._options import AsJson, Device, Quiet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from triune.evals.judges import Rubric
    from triune.evals.judges.calibrate import Trial
    from triune.evals.judges.http import Endpoint
    from triune.evals.judges.judge import Judged, Pass
    from triune.evals.judges.reply import Judge
    from triune.evals.judges.runs import Part
    from triune.evals.statistics import Estimate

KEY = "OPENAI_API_KEY"


def judge(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Run folders of `triune eval`, or files of samples.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--judge", help="An OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The judge's name there.")] = None,
    key_env: Annotated[
        str | None,
        typer.Option("--key-env", help=f"Variable that holds the key; {KEY} for an https URL if not given."),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option("--guard", help="A guard to judge by: folder or hub name. With --judge it is served there."),
    ] = None,
    guard_format: Annotated[
        str | None, typer.Option("--guard-format", help="mdjudge, llamaguard, wildguard or qwen3guard.")
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmark", "-t", help="What to judge; repeat. All that need one if not given."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Of instruct_open: the model (or file of samples) to compare with; the base."),
    ] = None,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="Of instruct_open: one token and its probability instead of a verdict.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", help="KEY=VALUE in each request, such as max_tokens=2048; null takes it out; repeat."
        ),
    ] = None,
    price_in: Annotated[
        float, typer.Option("--price-in", min=0, help="Of a million tokens that the judge reads.")
    ] = 0.0,
    price_out: Annotated[float, typer.Option("--price-out", min=0, help="Of a million tokens that it writes.")] = 0.0,
    per_minute: Annotated[float, typer.Option("--rpm", min=0, help="Most requests a minute; 0 for no limit.")] = 0.0,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at once.")] = 8,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for a reply.")] = 600.0,
    device: Device = "auto",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the judge against people's labels instead.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of these labels; $TRIUNE_DATA if not given.")
    ] = None,
    replies: Annotated[Path, typer.Option("--replies", help="With --calibrate: file that keeps the replies.")] = Path(
        "judge-calibration.jsonl"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and leave.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Let a judge score logged answers: a language model behind a URL, or a guard.

    Before it starts it says what will be sent where. Replies are kept, so nothing is asked twice and a stopped run
    continues. Results go to the run's results.db, for `triune leaderboard`.
    """
    from triune.cli._show import Bar, console
    from triune.errors import CheckFailed, UserError
    from triune.evals.judges import RUBRICS
    from triune.evals.judges.cache import Cache
    from triune.evals.judges.calibrate import trials
    from triune.evals.judges.guards import find_format, guard_rubrics
    from triune.evals.judges.judge import Pass
    from triune.evals.judges.runs import passes
    from triune.progress import Noted

    if bool(paths) == calibrate:
        raise UserError("Name a run folder or a file of samples to judge, or --calibrate and none.")
    endpoint = _endpoint(url, model or guard, key_env, per_minute, concurrency, timeout)
    if guard:
        if guard_format is None:
            raise UserError(
                "Say by --guard-format how the guard is asked: mdjudge, llamaguard, wildguard or qwen3guard."
            )
        from triune.evals.judges.local import guard as load

        rubrics: Mapping[str, Rubric] = guard_rubrics(find_format(guard_format))
        by = load(guard, guard_format, endpoint=endpoint, device=device)
    elif endpoint is None or model is None:
        raise UserError("Name the judge: --judge URL with --model NAME, or --guard NAME with --guard-format.")
    else:
        from triune.evals.judges.llm import language_model

        rubrics, by = RUBRICS, language_model(endpoint, _settings(settings or []))
    with Bar(quiet) as bar:
        if calibrate:
            folder = data or os.environ.get("TRIUNE_DATA")
            if not folder:
                raise UserError("Name by --data the folder with llmbar.jsonl and xstest_refusal_labels.jsonl.")
            cache = Cache(replies)
            labelled = trials(Path(folder), rubrics, logprobs=logprobs)
            work = [Work(by.name, t.name, Pass(t.samples, t.rubric, by, cache), trial=t) for t in labelled]
        else:
            found = passes(
                *(paths or [], benchmarks, by, rubrics),
                reference=reference,
                logprobs=logprobs,
                note=lambda sentence: bar(Noted(sentence)),
            )
            work = [Work(part.label, part.benchmark, todo, part=part) for part, todo in found]
        prices = (price_in, price_out)
        if not quiet:
            key = f" with the key in ${key_env or KEY}" if endpoint and endpoint.key else ""
            console.print(*_announcement(work, by, key, prices), sep="\n", soft_wrap=True, markup=False)
        if dry_run:
            return
        told = [_run(one, prices, bar) for one in work]
    _print(told, as_json)
    failed = [(row, why) for row in told for why in [row["failed"]] if why]
    if failed:
        row, why = failed[0]
        raise CheckFailed(
            f"{sum(len(w) for _, w in failed)} samples got no reply after all tries, the first of {row['benchmark']}: "
            f"{next(iter(why.values()))}. Their benchmarks were not stored. The same command asks for them again."
        )


@dataclass(frozen=True)
class Work:
    """One pass: a benchmark of a model, or rows that people have labelled."""

    label: str
    benchmark: str
    todo: Pass
    part: Part | None = None
    trial: Trial | None = None


def _endpoint(
    url: str | None, model: str | None, key_env: str | None, per_minute: float, concurrency: int, timeout: float
) -> Endpoint | None:
    from triune.errors import UserError
    from triune.evals.judges.http import Endpoint

    if url is None:
        return None
    # A key that nobody named must not cross a network in the clear.
    name = key_env or (KEY if url.startswith("https://") else "")
    key = os.environ.get(name, "").strip() if name else ""
    if key_env and not key:
        raise UserError(f"The variable {key_env} is not set, and --key-env says that it holds the judge's key.")
    return Endpoint(
        url=url, model=model or "", key=key, per_minute=per_minute, concurrency=concurrency, timeout=timeout
    )


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    import json

    from triune.errors import UserError

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals or key in ("model", "messages", "stream", "n"):
            raise UserError(f"--set {pair}: write KEY=VALUE, of a setting that is not ours to make.")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _announcement(work: Sequence[Work], by: Judge, key: str, prices: tuple[float, float]) -> Iterable[str]:
    """What will be sent where, how much of it, and what it may cost."""
    from triune.evals.judges.reply import Usage

    missing, total = [], 0
    for one in work:
        requests = one.todo.requests()
        missing += [body for _, body in one.todo.missing(requests).values()]
        total += len({key for row in requests.values() for key, _ in row})
    yield f"judge     {by.name} at {by.where}{key}"
    files = sorted({str(i.part.samples) for i in work if i.part} or {i.benchmark for i in work})
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    yield f"shown     prompts, answers and references of {', '.join(files[:3])}{more}"
    kept = sorted({str(i.todo.cache.path) for i in work})
    yield f"kept in   {', '.join(kept[:3])}{f' and {len(kept) - 3} more' if len(kept) > 3 else ''}"
    # Four characters a token is a rule of thumb for English.
    read = sum(len(b["prompt"]) if "prompt" in b else len(b["messages"][0]["content"]) // 4 for b in missing)
    most = Usage(read, sum(b.get("max_tokens") or 0 for b in missing))
    known = f", {total - len(missing):,} known already" if total > len(missing) else ""
    cost = f", at most {most.cost(*prices):.2f} in all" if any(prices) else ""
    size = f"about {most.tokens_in:,} tokens to read and at most {most.tokens_out:,} to write"
    yield f"requests  {len(missing):,}{known}: {size}{cost}"


def _run(one: Work, prices: tuple[float, float], bar: Any) -> dict[str, Any]:
    """Judge, store where there is a store, and tell."""
    from datetime import UTC, datetime

    from triune.evals import store
    from triune.evals.judges.calibrate import calibrate
    from triune.evals.judges.judge import judge as run
    from triune.evals.judges.runs import proxy_of, results_of
    from triune.evals.statistics import estimate

    if one.trial is not None:
        found = calibrate(one.trial, one.todo, bar)
        return _row(one, found.judged, found.agreement, prices, "")
    judged = run(one.todo, bar)
    scores = [judged.scores[i] for i in sorted(judged.scores)]
    part = one.part
    if part and part.model and part.store and scores and not judged.failed:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        store.add(part.store, results_of(part, one.todo, judged, time=time))
    proxy = proxy_of(part, one.todo, judged) if part else ""
    return _row(one, judged, estimate(scores, f"0:{one.benchmark}") if scores else None, prices, proxy)


def _row(one: Work, judged: Judged, found: Estimate | None, prices: tuple[float, float], proxy: str) -> dict[str, Any]:
    from triune.evals.benchmark import BENCHMARKS

    return {
        "model": one.label,
        "benchmark": one.benchmark,
        "scorer": one.todo.judge.name + (one.todo.rubric.scorer if one.trial is None else ""),
        "value": found.value if found else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "n": found.n if found else 0,
        "full_n": BENCHMARKS[one.benchmark].items if one.part else None,
        "proxy": proxy,
        "unparsed": list(judged.unparsed),
        "refused": dict(judged.refused),
        "failed": dict(judged.failed),
        "requests": judged.requests,
        "tokens_in": judged.spent.tokens_in,
        "tokens_out": judged.spent.tokens_out,
        "cost": judged.spent.cost(*prices) if any(prices) else None,
        "scores": dict(judged.scores),
    }


def _print(told: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    import json

    from rich.table import Table

    from triune.cli._show import stdout

    if as_json:
        print(json.dumps(told, ensure_ascii=False))
        return
    heads = ("model", "benchmark", "scorer", "%", "n", "no verdict", "refused", "requests", "tokens in", "out", "cost")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in told:
        share = "—"
        if row["value"] is not None:
            share = (
                "≈" * bool(row["proxy"]) + f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            )
        counts = [f"{len(row[name]):,}" for name in ("unparsed", "refused")]
        counts += [f"{row[name]:,}" for name in ("requests", "tokens_in", "tokens_out")]
        cost = "—" if row["cost"] is None else f"{row['cost']:.2f}"
        n = f"{row['n']:,}" + (f" of {row['full_n']:,}" if row["n"] < (row["full_n"] or 0) else "")
        table.add_row(row["model"], row["benchmark"], row["scorer"], share, n, *counts, cost)
    console = stdout()
    console.print(table)
    beside: dict[str, list[str]] = {}
    for row in told:
        beside.setdefault(row["proxy"], []).append(row["benchmark"])
    for proxy, names in beside.items():
        if proxy:
            console.print(f"≈ {', '.join(dict.fromkeys(names))}: {proxy}.", soft_wrap=True, markup=False)
