"""Lanes share devices; a job that does not fit a GPU's memory is done on the CPU, once. No GPU is needed for that."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Barrier

import pytest
import torch

from triune.engine.cores import pick_devices
from triune.engine.executors.local import LocalExecutor
from triune.engine.job import Lane
from triune.errors import UserError


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
    LocalExecutor(1, 10, "cuda:0", "cuda:1").run([Number(1), Number(2)], work, lambda job, device: found.append(device))
    assert sorted(found) == ["cuda:0", "cuda:1"]


def test_what_does_not_fit_goes_to_the_cpu() -> None:
    tried: list[tuple[int, str]] = []

    def work(job: Number, lane: Lane) -> str:
        tried.append((job.value, lane.device))
        if job.value == 2 and lane.device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lane.device

    found: dict[int, str] = {}
    jobs = [Number(1), Number(2), Number(3)]
    LocalExecutor(1, 10, "cuda:0").run(jobs, work, lambda job, device: found.update({job.value: device}))
    assert found == {1: "cuda:0", 2: "cpu", 3: "cuda:0"}
    assert tried == [(1, "cuda:0"), (2, "cuda:0"), (2, "cpu"), (3, "cuda:0")]


def test_the_cpu_has_no_fallback() -> None:
    def work(job: Number, lane: Lane) -> None:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        LocalExecutor(1, 10).run([Number(1)], work)


def test_names() -> None:
    assert pick_devices("cpu") == ("cpu",)
    with pytest.raises(UserError, match="got tpu"):
        pick_devices("cpu,tpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_every_gpu() -> None:
    assert len(pick_devices("cuda")) == torch.cuda.device_count()
