"""``python -m benchmarks.passes``: what ``triune plan --time`` counts for methods that work in blocks.

Each method merges three experts of 64 blocks, its scan included, on one core: its time for an entry of an expert over that
of ``x * 0.5``. The numbers stand in ``triune/methods/_cost.py``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

from triune.engine.allocator import keep_freed_blocks
from triune.engine.costs import calibrate
from triune.engine.job import BLOCK
from triune.methods import find
from triune.methods._cost import PASSES
from triune.methods._spec import View

EXPERTS, BLOCKS, COLUMNS = 3, 64, 4096
SETTINGS: dict[str, dict[str, float]] = {
    "ties": {"density": 0.2},
    "dare_linear": {"density": 0.3},
    "dare_ties": {"density": 0.3},
    "della_linear": {"density": 0.3, "epsilon": 0.1},
    "della": {"density": 0.3, "epsilon": 0.1},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01},
    "breadcrumbs_ties": {"density": 0.9, "gamma": 0.01},
}


def deltas(rows: int, columns: int) -> torch.Tensor:
    """What models.py makes, ``[experts, rows, columns]``: differences of bfloat16 numbers, with many ties."""
    draw = torch.Generator().manual_seed(0)
    base = (torch.randn(rows, columns, generator=draw) * 0.02).bfloat16()
    noise = torch.randn(EXPERTS, *base.shape, generator=draw).pow_(3) * 0.0005
    return (base + noise).bfloat16().float() - base.float()


def merge(name: str, stack: torch.Tensor) -> None:
    """Block by block, as the engine does."""
    method = find(name)
    bound = method.bind(
        {**({"weight": 1 / EXPERTS} if name != "model_stock" else {}), **SETTINGS.get(name, {})}, EXPERTS
    )
    view = View("w", ("a", "b", "c"), shape=tuple(stack.shape[1:]))
    step = BLOCK // COLUMNS
    scan, keywords = method.scan(EXPERTS, stack[0].numel(), **bound) if method.scan else None, {}
    turn = 0
    while scan and turn < scan.passes:
        few = 1 if scan.one_of(turn) > 1 else step
        for first in range(0, stack.shape[1], few * scan.one_of(turn)):
            scan.see(turn, stack[:, first : first + few], replace(view, start=first * COLUMNS))
        scan.close(turn)
        turn += 1
    if scan:
        keywords["stats"] = scan.result()
    for first in range(0, stack.shape[1], step):
        method.function(stack[:, first : first + step], view=replace(view, start=first * COLUMNS), **keywords, **bound)


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.passes", description="Count passes of methods.").parse_args(
        arguments
    )
    torch.set_num_threads(1)
    keep_freed_blocks()
    unit, stack = 1 / max(calibrate()["passes"] for _ in range(5)), deltas(BLOCKS * BLOCK // COLUMNS, COLUMNS)
    for name in PASSES:
        merge(name, stack[:, : 4 * BLOCK // COLUMNS])
        best: Any = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            merge(name, stack)
            best = min(best, time.perf_counter() - start)
        print(f'"{name}": {best / stack.numel() / unit:.0f},', flush=True)


if __name__ == "__main__":
    main()
