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
    names = f"all if none is given: {', '.join(CASES)}; CASE@SIZE for one on models of another size"
    parser.add_argument("cases", nargs="*", metavar="CASE", help=names)
    parser.add_argument("--size", choices=SIZES, default="slice1b")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--patience", type=float, default=300, metavar="S", help="a tool that took so long rests")
    parser.add_argument("--install", action="store_true", help="make environments for the other programs")
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="models, environments, outputs, logs")
    parser.add_argument("--results", type=Path, help="folder of JSON files; in the work folder if not given")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all results there as Markdown")
    given = parser.parse_args(arguments)
    pairs = [(case, size or given.size) for case, _, size in (c.partition("@") for c in given.cases or CASES)]
    if unknown := {case for case, _ in pairs} - {*CASES}:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if unknown := {size for _, size in pairs} - {*SIZES}:
        parser.error(f"there is no size {', '.join(sorted(unknown))}; there are {', '.join(SIZES)}")
    results = given.results or given.work / "results"
    for size in dict.fromkeys(size for _, size in pairs):
        make_models(given.work / "models" / size, SIZES[size])
    measured = [
        run_case(
            CASES[name],
            size,
            given.work,
            repeats=given.repeats,
            patience=given.patience,
            install=given.install,
            tell=partial(print, flush=True),
            keep=partial(save, results),
        )
        for name, size in pairs
    ]
    print(f"\n{table(measured)}")
    if given.report:
        given.report.write_text(report(load(results)))


if __name__ == "__main__":
    main()
