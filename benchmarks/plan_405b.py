"""``python -m benchmarks.plan_405b``: what a merge of Llama-3.1-405B takes on a cluster, from headers and measured jobs.

Bytes, jobs and memory are those of ``triune plan`` itself, on checkpoints that have headers and holes instead of weights.
Time is a model: processor seconds of a job, fitted to jobs measured on one core and spread over the cluster's lanes, and
bytes over the bandwidth of its file system. ``--measure`` measures again; ``plan_405b.json`` holds what was measured last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.models import EXPERTS, RANK, SIZES, Size, make_models
from triune.checkpoint.writer import DEFAULT_SHARD, Shard, lay_out, shard_index
from triune.engine.executors.ray import GROUP, STEP, WORKER, groups
from triune.engine.inputs import Lane
from triune.engine.job import Job
from triune.engine.plan import Plan, make_plan
from triune.engine.run import run_job
from triune.recipes import recipe_from_flags

LLAMA_405B = Size(16384, 53248, 126, 1024, 128256, heads=128)
MEASURED = Path(__file__).with_suffix(".json")
FITTED = {"slice1b": SIZES["slice1b"], "half": Size(1024, 4096, 2, 256, 8000)}
"""What is measured: a layer of Llama-3.2-1B with its ends, and one half as wide."""
MOST = 3e10
"""Multiplications of the longest job that is measured: those of the wider size's MLP take half a minute each."""
CASES: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "task_arithmetic": ("task_arithmetic", False, ("weight=0.5",)),
    "ties": ("ties", False, ("density=0.2",)),
    "dare_ties": ("dare_ties", False, ("weight=0.5", "density=0.3")),
    "tsvm": ("tsvm", False, ()),
    "r_tsvm": ("r_tsvm", False, ()),
    "tsvm of adapters": ("tsvm", True, ()),
    "r_tsvm of adapters": ("r_tsvm", True, ("outlier_scope=channel",)),
}
"""Name -> method, whether its experts are adapters, settings."""


# --- plans --------------------------------------------------------------------------------------------------------


def write_hollow(folder: Path, size: Size) -> None:
    """Base, experts and adapters whose files have the right headers and lengths, and holes for weights: a few megabytes."""
    full = list(lay_out(((n, "BF16", shape) for n, shape in size.tensors().items()), DEFAULT_SHARD))
    for name in ("base", *EXPERTS):
        _write_holes(folder / name, full)
        (folder / name / "config.json").write_text(json.dumps(size.config()))
        if index := shard_index(full):
            (folder / name / "model.safetensors.index.json").write_text(index)
    shapes: dict[str, tuple[int, int]] = {}
    for tensor, (rows, columns) in size.linears().items():
        module = f"base_model.model.{tensor.removesuffix('.weight')}"
        shapes |= {f"{module}.lora_A.weight": (RANK, columns), f"{module}.lora_B.weight": (rows, RANK)}
    (adapter,) = lay_out(((n, "BF16", shape) for n, shape in shapes.items()), 1 << 62)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK}
    for name in EXPERTS:
        _write_holes(folder / f"{name}-lora", [adapter])
        (folder / f"{name}-lora" / adapter.name).rename(folder / f"{name}-lora" / "adapter_model.safetensors")
        (folder / f"{name}-lora" / "adapter_config.json").write_text(json.dumps(settings))


def _write_holes(folder: Path, shards: Sequence[Shard]) -> None:
    folder.mkdir(parents=True)
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.nbytes)


def plan_of(case: str, models: Path) -> Plan:
    """The plan of a case on these models."""
    method, adapters, settings = CASES[case]
    ending = "-lora" if adapters else ""
    base, experts = str(models / "base"), [f"{e}={models / (e + ending)}" for e in EXPERTS]
    return make_plan(recipe_from_flags(base=base, experts=experts, method=method, settings=list(settings)))


# --- the time of a job --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """A job that was run on one core, its inputs in the page cache."""

    size: str
    case: str
    tensor: str
    bytes: int
    """Read."""
    work: tuple[int, int]
    """As :func:`work_of` counts it."""
    seconds: float
    """Of the processor."""


def work_of(job: Job) -> tuple[int, int]:
    """What a job's time goes with besides bytes, in multiplications: of products of matrices, and of eigendecompositions.

    A spectral job finds each expert's SVD by way of the smaller Gram matrix. One on factors multiplies them out in the end.
    All others have neither.
    """
    rows, columns = job.output.matrix
    if job.route == "dense":
        small, experts = min(rows, columns), len(job.experts)
        return experts * rows * columns * small, experts * small**3
    if job.route == "factors":
        return rows * columns * sum(s.factors.rank for s in job.experts if s.factors), 0
    return 0, 0


class _Nowhere:
    """A sink that keeps nothing: writing is the file system's part of the model."""

    def write(self, info: Any, at: int, data: memoryview) -> None:
        pass

    def write_factors(self, job: Job, delta: Any) -> str:
        return ""


def measure(work: Path, repeats: int = 1) -> list[Measurement]:
    """Run every job of one layer and of the ends, for every case, ``repeats`` times, and keep its shortest time."""
    import torch

    from triune.checkpoint.reader import Files

    torch.set_num_threads(1)
    found = []
    for name, size in FITTED.items():
        make_models(work / "models" / name, size)
        for case in CASES:
            for job in plan_of(case, work / "models" / name).jobs:
                if ".layers.1." in job.output.name or max(work_of(job)) > MOST:
                    continue
                times = []
                with Files() as files:
                    for _ in range(repeats):
                        start = time.process_time()
                        run_job(job, Lane(files), sink=_Nowhere())
                        times.append(time.process_time() - start)
                found.append(Measurement(name, case, job.output.name, job.read_bytes, work_of(job), min(times)))
            print(
                f"{name}: {case} {sum(m.seconds for m in found if (m.size, m.case) == (name, case)):.2f} s", flush=True
            )
    return found


@dataclass(frozen=True)
class Model:
    """Processor seconds of a job: so many for a byte read, and so many for a multiplication of either kind."""

    per_byte: Mapping[str, float]
    per_work: Mapping[str, tuple[float, float]]

    def seconds(self, case: str, nbytes: int, work: tuple[int, int]) -> float:
        return self.per_byte[case] * nbytes + sum(a * b for a, b in zip(self.per_work[case], work, strict=True))


def fit(measured: Sequence[Measurement]) -> Model:
    """Least squares of relative errors: first the bytes, by the jobs without other work, then the work of what is left.

    Vectors are left out: their microseconds are the calls', and there are few of them.
    """
    import numpy as np

    per_byte: dict[str, float] = {}
    per_work: dict[str, tuple[float, float]] = {}
    for case in CASES:
        mine = [m for m in measured if m.case == case and m.bytes > 1 << 20]
        plain, heavy = [m for m in mine if not any(m.work)], [m for m in mine if any(m.work)]
        per_byte[case] = sum(m.bytes / m.seconds for m in plain) / sum((m.bytes / m.seconds) ** 2 for m in plain)
        per_work[case] = (0.0, 0.0)
        if heavy:
            left = np.array([m.seconds - per_byte[case] * m.bytes for m in heavy])
            scale = np.array([m.seconds for m in heavy])
            work = np.array([m.work for m in heavy], dtype=float)
            found, *_ = np.linalg.lstsq(work / scale[:, None], left / scale, rcond=None)
            per_work[case] = (float(found[0]), float(found[1]))
    return Model(per_byte, per_work)


@cache
def measurements() -> tuple[Measurement, ...]:
    """Those that are committed."""
    return tuple(Measurement(**{**m, "work": tuple(m["work"])}) for m in json.loads(MEASURED.read_text())["jobs"])


# --- a cluster ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """So many nodes alike, with cores, bytes of memory for Ray, and bytes a second from and to the shared file system."""

    nodes: int = 16
    cores: int = 32
    memory: float = 230e9
    read: float = 2e9
    write: float = 1e9

    def demand(self, job: Job) -> int:
        """As :meth:`RayExecutor.demand`, without --max-memory."""
        return -(-(WORKER + job.nbytes) // STEP) * STEP


@dataclass(frozen=True)
class Estimate:
    """What a merge takes."""

    read: int
    write: int
    tasks: int
    largest: int
    """Bytes that the hungriest job asks Ray for."""
    processor: float
    """Seconds, of one core."""
    bounds: Mapping[str, float]
    """Seconds that it takes at least, by what it waits for."""

    @property
    def seconds(self) -> float:
        return max(self.bounds.values())


def estimate(case: str, plan: Plan, cluster: Cluster, model: Model) -> Estimate:
    """The largest of what each resource needs: no schedule is faster, and Ray's, the longest first, is at most 4/3 of it
    where lanes are alike.
    """
    seconds = [model.seconds(case, j.read_bytes, work_of(j)) for j in plan.jobs]
    demands = [cluster.demand(j) for j in plan.jobs]
    # A dense job reads its base twice: for the deltas, and to add them up.
    read = plan.read_bytes + sum(
        j.base.dense.nbytes for j in plan.jobs if j.route == "dense" and j.base and j.base.dense
    )
    held = sum(s * d for s, d in zip(seconds, demands, strict=True))
    bounds = {
        "reading": read / (cluster.nodes * cluster.read),
        "writing": plan.write_bytes / (cluster.nodes * cluster.write),
        "cores": sum(seconds) / (cluster.nodes * cluster.cores),
        "memory": held / (cluster.nodes * cluster.memory),
        "longest job": max(seconds),
    }
    tasks = len(list(groups(plan.jobs, GROUP)))
    return Estimate(read, plan.write_bytes, tasks, max(demands), sum(seconds), bounds)


def table(estimates: Mapping[str, Estimate], cluster: Cluster) -> str:
    """In Markdown."""
    head = "| method | read | written | of a node | tasks | largest task | core hours | time | waits for |"
    lines = [head, "|---" * 9 + "|"]
    for case, e in estimates.items():
        slowest = max(e.bounds, key=lambda bound: e.bounds[bound])
        node = (e.read + e.write) / cluster.nodes
        lines.append(
            f"| {case} | {e.read / 1e12:.2f} TB | {e.write / 1e12:.2f} TB | {node / 1e9:.0f} GB | {e.tasks} "
            f"| {e.largest / 1e9:.1f} GB | {e.processor / 3600:.1f} | {_time(e.seconds)} | {slowest} |"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_405b", description="Plan a 405B merge.")
    parser.add_argument("--measure", action="store_true", help="measure jobs here first (minutes of one core)")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".work", help="models to measure with")
    for name, value in asdict(Cluster()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="of a node" if name != "nodes" else None)
    given = vars(parser.parse_args(arguments))
    again, work = given.pop("measure"), given.pop("work")
    if again:
        jobs = [asdict(m) for m in measure(work)]
        about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine.describe(work)}
        lines = ",\n".join(map(json.dumps, jobs))
        MEASURED.write_text(f'{json.dumps(about)[:-1]}, "jobs": [\n{lines}\n]}}\n')
        measurements.cache_clear()
    cluster, model = Cluster(**given), fit(measurements())
    with tempfile.TemporaryDirectory() as folder:
        write_hollow(Path(folder) / "models", LLAMA_405B)
        found = {c: estimate(c, plan_of(c, Path(folder) / "models"), cluster, model) for c in CASES}
    print(table(found, cluster))


if __name__ == "__main__":
    main()
