"""``python -m benchmarks``: make the models, measure, print one table."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.models import SIZES, make_models
from benchmarks.report import report
from benchmarks.results import load, save, table
from benchmarks.run import run_case

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time whole merges, in turns.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all if none is given: {', '.join(CASES)}")
    parser.add_argument("--size", choices=SIZES, default="slice1b")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--patience", type=float, default=300, metavar="S", help="a tool that took so long rests")
    parser.add_argument("--install", action="store_true", help="make environments for the other programs")
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="models, environments, outputs, logs")
    parser.add_argument("--results", type=Path, help="folder of JSON files; in the work folder if not given")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all results there as Markdown")
    given = parser.parse_args(arguments)
    if unknown := {*given.cases} - {*CASES}:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    results = given.results or given.work / "results"
    make_models(given.work / "models" / given.size, SIZES[given.size])
    measured = [
        run_case(
            CASES[name],
            given.size,
            given.work,
            repeats=given.repeats,
            patience=given.patience,
            install=given.install,
            tell=partial(print, flush=True),
            keep=partial(save, results),
        )
        for name in given.cases or CASES
    ]
    print(f"\n{table(measured)}")
    if given.report:
        given.report.write_text(report(load(results)))


if __name__ == "__main__":
    main()
