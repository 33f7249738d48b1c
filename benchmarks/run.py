"""Runs the tools of a case in turns."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.cases import Case
from benchmarks.process import Cost, measure
from benchmarks.results import Measured, Run
from benchmarks.tools import OFFLINE, TOOLS, Setting, missing


def run_case(
    case: Case,
    size: str,
    work: Path,
    *,
    repeats: int,
    patience: float = float("inf"),
    install: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    keep: Callable[[Measured], None] = lambda measured: None,
) -> Measured:
    """Measure every tool of the case ``repeats`` times, each round in another order.

    Args:
        case: what to merge.
        size: name of the models' size; they stand in ``work/models/SIZE``.
        work: folder of models, outputs and logs.
        repeats: rounds.
        patience: seconds after which a tool is not run again.
        install: make environments that are missing.
        tell: is told each run in a line.
        keep: is called after each run, so that a long measurement that is stopped leaves what it has.
    """
    models, peers = work / "models" / size, work / "peers"
    absent = missing(case.tools, peers, install=install)
    measured = Measured(size, case.name, machine.describe(work), f"{datetime.now(UTC):%Y-%m-%d}", absent=absent)
    for tool, reason in absent.items():
        tell(f"{case.name}: {tool} left out, {reason}")
    tools = [t for t in case.tools if t not in absent]
    spent = dict.fromkeys(tools, 0.0)
    for turn in range(repeats):
        for tool in tools[turn % len(tools) :] + tools[: turn % len(tools)]:
            if spent[tool] > patience:
                continue
            before = machine.load()
            cost = _run(tool, case, models, peers, work)
            spent[tool] += cost.wall
            measured.runs.append(Run(tool, turn, cost, before))
            tell(f"{case.name}: {tool} {cost.wall:.1f} s, {cost.peak / 1e9:.2f} GB" + _failed(cost))
            keep(measured)
    return measured


def _run(tool: str, case: Case, models: Path, peers: Path, work: Path) -> Cost:
    out = work / "out" / f"{case.name.replace(' ', '-')}-{tool}"
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = TOOLS[tool](Setting(case, models.resolve(), out.resolve(), peers.resolve()))
    try:
        return measure(command, out.with_suffix(".log"), OFFLINE)
    finally:
        shutil.rmtree(out, ignore_errors=True)  # so the next tool does not pay for writing it to the disk


def _failed(cost: Cost) -> str:
    return f", failed with exit code {cost.code}, see its log under out/" if cost.code else ""
