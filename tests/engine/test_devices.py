"""Lanes share devices; a job that does not fit a GPU's memory is done on the CPU, once. No GPU is needed for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Lock
from typing import TYPE_CHECKING, Any

import pytest
import torch

from triune.engine.budget import device_limits, human
from triune.engine.cores import pick_devices
from triune.engine.executors.local import LocalExecutor
from triune.engine.inputs import Lane
from triune.engine.job import device_memory_of
from triune.engine.plan import make_plan
from triune.errors import UserError
from triune.recipes import Recipe, recipe_from_flags

if TYPE_CHECKING:
    from conftest import Case, Models, Run


@dataclass(frozen=True)
class Number:
    value: int
    nbytes: int = 1
    traffic: int = 1


def test_each_device_has_a_lane() -> None:
    together = Barrier(2, timeout=30)

    def work(job: Number, lane: Lane) -> str:
        together.wait()  # ends only if two lanes are at it at once
        return lane.device

    found: list[str] = []
    executor = LocalExecutor(1, 10, {"cuda:0": 10, "cuda:1": 10})
    executor.run([Number(1), Number(2)], work, lambda job, device: found.append(device))
    assert sorted(found) == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.linalg.LinAlgError("The GPU's solver returned vectors that are none."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_does_not_fit_goes_to_the_cpu(failure: Exception) -> None:
    tried: list[tuple[int, str]] = []

    def work(job: Number, lane: Lane) -> str:
        tried.append((job.value, lane.device))
        if job.value == 2 and lane.device != "cpu":
            raise failure
        return lane.device

    found: dict[int, str] = {}
    jobs = [Number(1), Number(2), Number(3)]
    LocalExecutor(1, 10, {"cuda:0": 10}).run(jobs, work, lambda job, device: found.update({job.value: device}))
    assert found == {1: "cuda:0", 2: "cpu", 3: "cuda:0"}
    assert tried == [(1, "cuda:0"), (2, "cuda:0"), (2, "cpu"), (3, "cuda:0")]


def test_what_no_gpu_has_room_for_is_never_tried_there() -> None:
    """With room for 40 and 15 bytes, 50 goes to the CPU, 30 to the larger GPU, 10 to either."""
    found: dict[int, set[str]] = {50: set(), 30: set(), 10: set()}
    jobs = [Number(n, nbytes=n) for n in (50, 30, 10, 10, 30)]
    executor = LocalExecutor(2, 1000, {"cuda:0": 40, "cuda:1": 15})
    executor.run(jobs, lambda job, lane: lane.device, lambda job, device: found[job.value].add(device))
    assert found[50] == {"cpu"}
    assert found[30] == {"cuda:0"}
    assert found[10] <= {"cuda:0", "cuda:1"}


def test_a_cpu_lane_starts_with_the_others() -> None:
    together = Barrier(2, timeout=30)

    def work(job: Number, lane: Lane) -> str:
        together.wait()
        return lane.device

    found: list[str] = []
    jobs = [Number(1, nbytes=5), Number(2, nbytes=50)]
    LocalExecutor(1, 100, {"cuda:0": 10}).run(jobs, work, lambda job, device: found.append(device))
    assert sorted(found) == ["cpu", "cuda:0"]


def test_a_lane_with_nothing_left_helps_the_cpu() -> None:
    together = Barrier(3, timeout=30)

    def work(job: Number, lane: Lane) -> str:
        together.wait()  # three at once, though only one lane began on the CPU
        return lane.device

    found: list[str] = []
    jobs = [Number(i, nbytes=50) for i in range(3)]
    LocalExecutor(2, 150, {"cuda:0": 10}).run(jobs, work, lambda job, device: found.append(device))
    assert found == ["cpu"] * 3


def test_what_is_on_a_gpu_at_once_fits_there() -> None:
    """Two jobs of 4 bytes have room in 10, three do not, whatever the number of lanes."""
    pair, now, most, access = Barrier(2, timeout=30), 0, 0, Lock()

    def work(job: Number, lane: Lane) -> None:
        nonlocal now, most
        with access:
            now += 1
            most = max(most, now)
        pair.wait()
        with access:
            now -= 1

    LocalExecutor(4, 100, {"cuda:0": 10}, lambda job: 4).run([Number(i) for i in range(12)], work)
    assert most == 2


def recipe_of(models: Models, method: str, settings: Sequence[str] = ()) -> Recipe:
    experts = [f"{n}={models.root / n}" for n in models.names]
    return recipe_from_flags(base=str(models.root / "base"), experts=experts, method=method, settings=[*settings])


def test_a_gpu_has_room_for_the_stacks_at_least(case: Case, models: Models, flags_of: Any) -> None:
    for job in make_plan(recipe_of(models, case.method, flags_of(case)[3::2])).jobs:
        assert (device_memory_of(job) > 0) == (job.route != "copy")
        if job.route in ("blocks", "dense"):
            stack = 4 * len(job.experts) * job.output.entries  # a toy's tensors are single blocks
            assert device_memory_of(job) >= (2 * stack if job.route == "blocks" else stack)


def test_a_gpu_has_room_for_what_is_decomposed_together(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """All experts of small matrices, one of larger ones."""
    dense = [j for j in make_plan(recipe_of(models, "tsvm")).jobs if j.route == "dense"]
    alone = [j.spec.workspace(j.bound, 1, j.output.shape) for j in dense if j.spec.workspace]
    together = [device_memory_of(job) for job in dense]
    assert together == [3 * each for each in alone]
    monkeypatch.setattr("triune.engine.job.TOGETHER", 1)
    assert [device_memory_of(job) for job in dense] == [
        j.spec.workspace(j.bound, 3, j.output.shape) for j in dense if j.spec.workspace
    ]
    assert all(device_memory_of(job) < most for job, most in zip(dense, together, strict=True))


def test_the_plan_tells_what_goes_to_the_cpu(models: Models) -> None:
    recipe = recipe_of(models, "tsvm")
    need = sorted(device_memory_of(job) for job in make_plan(recipe).jobs)
    count = need.count(need[-1])
    told = f"{count} tensors are merged on the CPU: they need more than --max-device-memory ({human(need[-1] - 1)})."
    assert count > 1
    assert told in make_plan(recipe, devices={"cuda:0": 1, "cuda:1": need[-1] - 1}).notes
    for devices in ({"cuda:0": need[-1]}, {"cuda:0": 1, "cpu": 1}, {"cpu": 1}, None):
        assert make_plan(recipe, devices=devices).notes == make_plan(recipe).notes
    assert make_plan(recipe, devices={"cuda:0": 1}).fingerprint == make_plan(recipe).fingerprint


def test_the_option(models: Models, triune: Run, tmp_path: Path) -> None:
    refused = triune("merge", *models.flags, "--max-device-memory", "huge", tmp_path / "out")
    assert refused.code == 2
    assert "'huge' is not a size" in refused.err
    assert device_limits(["cuda:0", "cpu"], 7, 100) == {"cuda:0": 7, "cpu": 100}
    assert triune("plan", *models.flags, "--max-device-memory", "1GB").code == 0


def test_the_cpu_has_no_fallback() -> None:
    def work(job: Number, lane: Lane) -> None:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        LocalExecutor(1, 10).run([Number(1)], work)


def test_names() -> None:
    assert pick_devices("cpu") == ("cpu",)
    with pytest.raises(UserError, match="got tpu"):
        pick_devices("cpu,tpu")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("auto", ("cuda:0", "cuda:1")),
        ("cuda", ("cuda:0", "cuda:1")),
        ("cuda:1, cuda", ("cuda:1", "cuda:0")),
        ("cuda:1,cuda:1,cpu", ("cuda:1", "cpu")),
    ],
)
def test_each_device_has_one_limit(names: str, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is named twice must not be filled twice."""
    monkeypatch.setattr("triune.engine.cores.pick_device", lambda name, _: "cuda" if name == "auto" else name)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert pick_devices(names) == found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_every_gpu() -> None:
    assert len(pick_devices("cuda")) == torch.cuda.device_count()
