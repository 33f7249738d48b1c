"""How plans, progress and checks look in a terminal. Everything for people goes to stderr, results to stdout."""

from __future__ import annotations

import os
import re
import sys
from time import monotonic
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from triune.engine.budget import human
from triune.progress import Advanced, Event, Finished, Noted, Started

console = Console(stderr=True, highlight=False)

WIDE = 1000
"""Columns of a table that no terminal shows."""

PAUSE = 30.0
"""Seconds between two lines of progress where there is no terminal to draw on."""


def stdout() -> Console:
    """For results. A file or a program that reads them gets each row of a table in one line."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return Console(highlight=False)
    return Console(highlight=False, width=WIDE, file=cast("IO[str]", _Trimmed()))


class _Trimmed:
    """Standard output, without the blanks that fill a table's columns up to their width at the end of a line."""

    @property
    def encoding(self) -> str:  # by which rich chooses the characters of a box
        return sys.stdout.encoding

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(r" +\n", "\n", text))

    def flush(self) -> None:
        sys.stdout.flush()


class Bar:
    """Draws the events of long work: share done, speed, time left. In a log it writes a line now and then instead."""

    def __init__(self, quiet: bool = False) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
            speed_estimate_period=600.0,  # a step of training may take longer than rich's 30 s
        )
        self.quiet = quiet
        self.log: Log | None = None
        self.task: TaskID | None = None
        self.bytes = True

    def __enter__(self) -> Bar:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        if not self.quiet and not console.is_terminal:
            self._write(event)
        if isinstance(event, Started):
            total = event.total or None  # none: a phase of unknown length
            self.bytes = event.unit == "bytes"
            self.task = self.progress.add_task(event.phase, total=total, completed=event.done, rate="")
        elif isinstance(event, Advanced) and self.task is not None:
            speed = self.progress.tasks[-1].speed  # the only one: those of earlier phases are removed
            rate = (f"{speed / 1e9:.2f} GB/s" if speed else "") if self.bytes else event.note
            self.progress.update(self.task, advance=event.amount, rate=rate)
        elif isinstance(event, Noted) and not self.quiet:
            console.print(event.sentence, soft_wrap=True, markup=False)
        elif isinstance(event, Finished) and self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def _write(self, event: Event) -> None:
        if isinstance(event, Started):
            self.log = Log(event, monotonic()) if event.unit != "bytes" else None
        elif isinstance(event, Advanced) and self.log is not None:
            line = self.log.line(event, monotonic())
            if line is not None:
                console.print(line, soft_wrap=True, markup=False)


class Log:
    """Progress as lines for a log: one after each :data:`PAUSE`, and the last."""

    def __init__(self, event: Started, now: float) -> None:
        self.phase, self.total, self.first, self.done = event.phase, event.total, event.done, event.done
        self.start = self.said = now

    def line(self, event: Advanced, now: float) -> str | None:
        """What to write at that second, if anything.

        >>> log = Log(Started("train", total=18, done=4, unit="steps"), now=0.0)
        >>> log.line(Advanced(1, "loss 0.690"), now=20.0)
        >>> log.line(Advanced(1, "loss 0.684"), now=40.0)  # 2 steps in 40 s: 12 more take 240 s
        'train 6/18, 4 min left, loss 0.684'
        """
        self.done += event.amount
        last = self.done == self.total
        if now - self.said < PAUSE and not last:
            return None
        self.said = now
        seconds = (now - self.start) / (self.done - self.first) * (self.total - self.done)
        left = f"{seconds / 60:.0f} min left" if seconds >= 60 else f"{seconds:.0f} s left"
        left = left if self.total > self.done else ""
        return ", ".join(filter(None, (f"{self.phase} {self.done}/{self.total or '?'}", left, event.note)))


def plan_table(plan: Any, threads: int, limit: int | None) -> Table:
    """A plan for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("method", f"{plan.method.name}: {plan.method.summary}")
    if plan.base:
        table.add_row("base", plan.base.ref.text)
    for model in plan.experts:
        kind = f"adapter of rank {model.adapter.rank}" if model.adapter else human(model.checkpoint.nbytes)
        label = "" if model.name == model.ref.text else f"{model.name} = "
        table.add_row("expert", f"{label}{model.ref.text} ({kind})")
    if plan.jobs:
        table.add_row("parameters", _parameters(plan))
    names = {
        "copy": "unchanged",
        "blocks": "in blocks",
        "dense": "by decomposition",
        "factors": "by the adapters' factors",
    }
    table.add_row("tensors", ", ".join(f"{n} {names[r]}" for r, n in sorted(plan.routes.items())))
    size = "an adapter" if plan.lora else f"{human(plan.write_bytes)} in {len(plan.shards)} file(s)"
    table.add_row("output", f"{size}, {plan.dtype}")
    table.add_row("reads", human(plan.read_bytes))
    told = f"{human(plan.peak_bytes(1))} for the largest tensor"
    if limit:
        told = f"{human(min(plan.peak_bytes(threads), limit))} at the peak on up to {threads} threads; limit {human(limit)}"
    table.add_row("memory", told)
    for line in plan.notes:
        table.add_row("note", line)
    return table


def _parameters(plan: Any) -> str:
    """Each parameter, one number for each expert; those that change from tensor to tensor as a range."""
    merged = [j for j in plan.jobs if j.route != "copy"] or plan.jobs
    shown = []
    for key, value in merged[0].bound.items():
        values = [j.bound.get(key) for j in merged]
        each = zip(*values, strict=True) if isinstance(value, tuple) else [values]
        text = " ".join(_range(v) for v in each)
        shown.append(f"{key.rstrip('_')} {text}")
    return ", ".join(shown)


def _range(values: Any) -> str:
    """``0.2`` or ``0.2..0.8``."""
    different = set(values)
    if len(different) == 1 or not all(isinstance(v, int | float) for v in different):
        return " or ".join(sorted(f"{v:g}" if isinstance(v, float) else f"{v}" for v in different))
    return f"{min(different):g}..{max(different):g}"


def plan_json(plan: Any, threads: int, limit: int | None) -> dict[str, Any]:
    """A plan for programs."""
    return {
        "method": plan.method.name,
        "base": plan.base.ref.text if plan.base else None,
        "experts": [{"name": m.name, "reference": m.ref.text, "adapter": m.adapter is not None} for m in plan.experts],
        "output": plan.recipe.output,
        "dtype": plan.dtype,
        "routes": dict(plan.routes),
        "read_bytes": plan.read_bytes,
        "write_bytes": plan.write_bytes,
        "peak_bytes": plan.peak_bytes(threads),
        "memory_limit": limit,
        "threads": threads,
        "shards": [s.name for s in plan.shards],
        "fingerprint": plan.fingerprint,
        "notes": list(plan.notes),
        "tensors": [
            {
                "name": j.output.name,
                "dtype": j.output.dtype,
                "shape": list(j.output.shape),
                "route": j.route,
                "memory": j.nbytes,
                "parameters": {k.rstrip("_"): v for k, v in j.bound.items()},
            }
            for j in plan.jobs
        ],
    }


def show_result(result: Any, seconds: float) -> None:
    """What a merge did, in a few lines."""
    if result.already_done:
        console.print(f"{result.out} is this very merge already; nothing to do.")
        return
    plan = result.plan
    for line in plan.notes:
        console.print(f"  note     {line}", soft_wrap=True)
    reasons: set[str] = set()
    for check in result.checks:
        if check.passed is None and check.sentence in reasons:
            continue  # several checks need the same thing
        reasons.add(check.sentence)
        mark = {True: "[green]ok[/]     ", False: "[red]FAILED[/] ", None: "not run"}[check.passed]
        console.print(f"  {mark}  {check.sentence}", soft_wrap=True)
    again = f", {result.resumed} of them by an earlier run" if result.resumed else ""
    kept = f", {result.from_cache} of them decomposed by an earlier merge" if result.from_cache else ""
    ranks = result.ranks.values() if result.ranks else ()
    rank = f" of rank {min(ranks)}" if ranks else ""
    rank += f" to {max(ranks)}" if len(set(ranks)) > 1 else ""
    size = "an adapter" + rank if plan.lora else human(plan.write_bytes)
    console.print(
        f"{result.out}: {plan.description}; {len(plan.jobs)} tensors{again}{kept}, {size}, {seconds:.1f} s.",
        soft_wrap=True,
    )


def result_json(result: Any) -> dict[str, Any]:
    """What a merge did, for programs."""
    return {
        "out": str(result.out),
        "method": result.plan.method.name,
        "fingerprint": result.plan.fingerprint,
        "tensors": len(result.plan.jobs),
        "resumed": result.resumed,
        "from_cache": result.from_cache,
        "already_done": result.already_done,
        "passed": result.passed if result.checks else None,
        "checks": [
            {"check": c.name, "passed": c.passed, "value": c.value, "sentence": c.sentence} for c in result.checks
        ],
    }
