"""In which order the jobs of a merge are begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triune as api
from triune.engine.executors.local import LocalExecutor
from triune.engine.job import Job
from triune.engine.merge import merge

if TYPE_CHECKING:
    from conftest import Models


class Recording(LocalExecutor):
    begun: Sequence[Job] = ()

    def run(self, jobs: Sequence[Any], work: Callable[..., Any], done: Callable[..., None] = lambda *_: None) -> None:
        self.begun = list(jobs)
        super().run(jobs, work, done)


def test_the_largest_decompositions_come_first(models: Models, tmp_path: Path) -> None:
    """Everything else stays in the order of the files, so that disks read on."""
    recipe = api.recipe_from_flags(
        base=str(models.root / "base"), experts=[f"{n}={models.root / n}" for n in models.names], method="tsvm"
    )
    executor = Recording(2, 1 << 30)
    merge(recipe, tmp_path / "out", executor=executor, gate=False)
    routes = [job.route for job in executor.begun]
    dense = routes.count("dense")
    assert routes == ["dense"] * dense + ["blocks"] * (len(routes) - dense)
    assert 0 < dense < len(routes)
    sizes = [job.traffic for job in executor.begun[:dense]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    others = [job.index for job in executor.begun[dense:]]
    assert others == sorted(others)
