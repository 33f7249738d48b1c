"""The lock file tells which tensors a GPU made and which the CPU, and verify makes each again where it was made.

There is no GPU here: the executors compute on the CPU and tell another device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import triune as api
from triune.engine import verify as verifying
from triune.engine.executors.local import LocalExecutor
from triune.engine.inputs import Lane
from triune.engine.job import Done, Job
from triune.errors import UserError

if TYPE_CHECKING:
    from conftest import Models

FELL_BACK = "model.layers.0.mlp.up_proj.weight"


class Told(LocalExecutor):
    """Says of all jobs but one that a GPU did them."""

    def run(
        self,
        jobs: Sequence[Any],
        work: Callable[[Any, Lane], Any],
        done: Callable[[Any, Any], None] = lambda j, r: None,
    ) -> None:
        def tell(job: Job, result: Done) -> None:
            there = job.route != "copy" and job.output.name != FELL_BACK
            done(job, replace(result, device="cuda:0") if there else result)

        super().run(jobs, work, tell)


@pytest.fixture
def merged(models: Models, tmp_path: Path) -> Path:
    experts = [f"{n}={models.root / n}" for n in models.names]
    recipe = api.recipe_from_flags(base=str(models.root / "base"), experts=experts, method="tsvm")
    api.merge(recipe, tmp_path / "out", executor=Told(1, 2**30), gate=False)
    return tmp_path / "out"


def test_what_fell_back_is_listed(merged: Path) -> None:
    lock = json.loads((merged / "triune.lock.json").read_text())
    assert (lock["device"], lock["on_cpu"]) == ("cuda", [FELL_BACK])


def test_a_merge_on_the_cpu_lists_nothing(models: Models, tmp_path: Path) -> None:
    experts = [f"{n}={models.root / n}" for n in models.names]
    recipe = api.recipe_from_flags(base=str(models.root / "base"), experts=experts, method="tsvm")
    api.merge(recipe, tmp_path / "out", gate=False)
    lock = json.loads((tmp_path / "out" / "triune.lock.json").read_text())
    assert lock["device"] == "cpu"
    assert "on_cpu" not in lock


def test_each_tensor_is_made_again_where_it_was(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], list[str]]] = []

    class Recorder(LocalExecutor):
        def __init__(self, threads: int, limit: int, devices: Any = None, need: Any = None) -> None:
            super().__init__(threads, limit)
            self.asked_for = list(devices or ["cpu"])

        def run(self, jobs: Any, work: Any, done: Any = lambda j, r: None) -> None:
            asked.append((self.asked_for, [j.output.name for j in jobs]))
            super().run(jobs, work, done)

    monkeypatch.setattr(verifying, "LocalExecutor", Recorder)
    monkeypatch.setattr(verifying, "pick_device", lambda name: name)
    monkeypatch.setattr(verifying, "device_limits", lambda devices, given, limit: dict.fromkeys(devices, limit))
    found = api.verify(merged, sample=None)
    assert not found.problems
    (gpu, there), (cpu, here) = asked
    assert (gpu, cpu, here) == (["cuda"], ["cpu"], [FELL_BACK])
    assert len(there) == found.recomputed - 1

    lock = json.loads((merged / "triune.lock.json").read_text())
    lock["tensors"][there[-1]] = lock["tensors"][FELL_BACK] = "0" * 64
    (merged / "triune.lock.json").write_text(json.dumps(lock))
    told = [p for p in api.verify(merged, sample=None).problems if "recomputing" in p]
    assert sum(p.endswith(verifying.ROUNDING) for p in told) == 1
    assert sum(p.startswith(FELL_BACK) and p.endswith("other bytes.") for p in told) == 1


def test_a_damaged_list_is_refused(merged: Path) -> None:
    lock = json.loads((merged / "triune.lock.json").read_text())
    (merged / "triune.lock.json").write_text(json.dumps({**lock, "on_cpu": 1}))
    with pytest.raises(UserError, match="is damaged"):
        api.verify(merged)


def test_without_that_device_nothing_is_made_again(merged: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = api.verify(merged)
    assert not found.problems
    assert found.recomputed == 0
    assert "there is no such device" in found.note
