"""``python -m benchmarks.tensor ties della``: what one entry costs on one core, from file to file, and where the time goes.

One large tensor goes through the engine's job with a single thread, without the start of a process. For finding what to make
faster: whole merges are timed by ``python -m benchmarks``.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from pathlib import Path

import torch

from benchmarks.cases import CASES
from benchmarks.models import SIZES, make_models
from triune.checkpoint.index import TensorInfo
from triune.checkpoint.reader import Files
from triune.engine.allocator import keep_freed_blocks
from triune.engine.inputs import Lane
from triune.engine.plan import make_plan
from triune.engine.run import run_job
from triune.methods._lowrank import LowRank
from triune.recipes import parse_recipe

TENSOR = "layers.0.mlp.up_proj"


class Nowhere:
    """Takes results and forgets them."""

    def write(self, info: TensorInfo, at: int, data: memoryview) -> None:
        pass

    def write_factors(self, job: object, delta: LowRank) -> str:
        return ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensor", description="Time one tensor on one core.")
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--size", choices=SIZES, default="slice1b")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--profile", action="store_true", help="show the functions that take longest")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".work")
    given = parser.parse_args(arguments)
    models = (given.work / "models" / given.size).resolve()
    make_models(models, SIZES[given.size])
    torch.set_num_threads(1)
    keep_freed_blocks()
    for name in given.cases:
        plan = make_plan(parse_recipe(CASES[name].recipe(models), origin=name, folder=models))
        job = next(j for j in plan.jobs if TENSOR in j.output.name)
        with Files() as files:
            lane, best = Lane(files), float("inf")
            run_job(job, lane, sink=Nowhere())
            for _ in range(given.repeats):
                start = time.perf_counter()
                run_job(job, lane, sink=Nowhere())
                best = min(best, time.perf_counter() - start)
            print(f"{name}: {best / job.output.entries * 1e9:.1f} ns an entry, best of {given.repeats}", flush=True)
            if given.profile:
                with cProfile.Profile() as profile:
                    run_job(job, lane, sink=Nowhere())
                pstats.Stats(profile).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
