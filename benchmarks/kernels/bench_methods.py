"""One block of three experts through the kernels that whole merges spend their time in; one thread, as in a lane.

Run with pytest-benchmark: ``python -m pytest benchmarks/kernels/*.py``. Nothing here asserts a time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.passes import SETTINGS, deltas

from triune.engine.job import BLOCK
from triune.methods._ops import elect_and_fuse, row_ranks, uniform
from triune.methods._sampled_cuts import SampledCuts
from triune.methods._scan import MagnitudeCuts
from triune.methods._spec import View

COLUMNS = 2048
VIEW = View("w", ("a", "b", "c"), shape=(BLOCK // COLUMNS, COLUMNS))


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", name="deltas")
def the_deltas() -> torch.Tensor:
    return deltas(BLOCK // COLUMNS, COLUMNS)


def test_magnitude_histogram(benchmark: Any, deltas: torch.Tensor) -> None:
    scan = MagnitudeCuts([[BLOCK // 5]] * 3)
    benchmark(scan.see, 0, deltas, VIEW)


def test_exact_cut(benchmark: Any, deltas: torch.Tensor) -> None:
    def search() -> Any:
        scan, turn = MagnitudeCuts([[BLOCK // 5]] * 3), 0
        while turn < scan.passes:
            scan.see(turn, deltas, VIEW)
            scan.close(turn)
            turn += 1
        return scan.result()

    ((cut,), *_) = benchmark(search)
    assert int(cut.keep(deltas[0], 0).count_nonzero()) == BLOCK // 5


def test_window(benchmark: Any, deltas: torch.Tensor) -> None:
    scan = SampledCuts([[BLOCK * 20]] * 3, BLOCK * 100)
    scan.see(0, deltas, VIEW)
    scan.close(0)
    benchmark(scan.see, 1, deltas, VIEW)


def test_elect_and_fuse(benchmark: Any, deltas: torch.Tensor) -> None:
    benchmark(elect_and_fuse, deltas, torch.ones(3, 1, 1), True)


def test_random_numbers(benchmark: Any) -> None:
    benchmark(uniform, VIEW, 0, BLOCK, torch.device("cpu"))


def test_row_ranks(benchmark: Any, deltas: torch.Tensor) -> None:
    benchmark(row_ranks, deltas[0], descending=False)


@pytest.mark.parametrize("method", ["task_arithmetic", *SETTINGS, "tsvm", "r_tsvm"])
def test_method(benchmark: Any, deltas: torch.Tensor, method: str) -> None:
    """Everything on one tensor: its scan, then the merge."""
    import triune

    stack = list(deltas)
    parameters = {"weight": 1.0, **SETTINGS.get(method, {})}
    merged = benchmark(triune.merge_tensors, method, stack, torch.zeros_like(stack[0]), parameters=parameters)
    assert bool(merged.any())
