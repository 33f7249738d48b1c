"""``python -m benchmarks.order``: whether lanes should begin with the longest jobs, simulated on a TSVM merge of 8B models.

A job takes what ``triune plan --time`` says. Lanes and memory are those of ``engine/executors/local.py``: a free lane takes
the next job and waits for its memory, and nobody overtakes it.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.startup import write_headers
from triune.engine.costs import calibrate, cost_of
from triune.engine.executors.local import LocalExecutor
from triune.engine.job import Job
from triune.engine.plan import make_plan
from triune.recipes import load_recipe

GIGABYTES = (2, 3, 4, 6, 12, 64)
LANES = (2, 4, 16)


def simulate(jobs: Sequence[tuple[float, int]], lanes: int, limit: int) -> float:
    """Seconds until the last job ends; each has its seconds and bytes, and begins in order.

    >>> simulate([(1.0, 4), (1.0, 4), (3.0, 4)], lanes=2, limit=10)  # the last one keeps a lane busy alone
    4.0
    >>> simulate([(3.0, 4), (1.0, 4), (1.0, 4)], lanes=2, limit=10)
    3.0
    >>> simulate([(3.0, 4), (1.0, 4), (1.0, 4)], lanes=2, limit=7)  # no room for two
    5.0
    """
    now, free, running = 0.0, limit, list[tuple[float, int]]()
    for seconds, nbytes in jobs:
        while len(running) == lanes or free < nbytes:
            ended, freed = heapq.heappop(running)
            now, free = max(now, ended), free + freed
        heapq.heappush(running, (now + seconds, nbytes))
        free -= nbytes
    return max(ended for ended, _ in running)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "8b"
        write_headers(models, "8b")
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(CASES["tsvm"].recipe(models))
        jobs = make_plan(load_recipe(recipe)).jobs
    rates = calibrate()

    def time(order: Sequence[Job], lanes: int, limit: int) -> float:
        costs = ((sum(n / rates[kind] for kind, n in cost_of(j).items()) + j.traffic / rates["bytes"]) for j in order)
        return simulate([(s, j.nbytes) for s, j in zip(costs, order, strict=True)], lanes, limit)

    print(
        "| GB | lanes | in the files' order, s | longest first, s | ratio | what triune does |\n|---|---|---|---|---|---|"
    )
    for gigabytes in GIGABYTES:
        for lanes in LANES:
            limit = gigabytes * 10**9
            files, longest = time(jobs, lanes, limit), time(sorted(jobs, key=lambda j: -j.traffic), lanes, limit)
            chosen = LocalExecutor(lanes, limit).longest_first(jobs, {"cpu": lanes})
            told = "files' order" if chosen == list(jobs) else "longest first"
            print(f"| {gigabytes} | {lanes} | {files:.0f} | {longest:.0f} | {longest / files:.2f} | {told} |")


if __name__ == "__main__":
    main()
