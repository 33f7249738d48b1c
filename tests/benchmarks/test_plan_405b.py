"""The plan of a 405B merge: its bytes by hand, and its model of time against the measurements that it is fitted to."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from benchmarks.plan_405b import Cluster

from benchmarks.models import Size
from benchmarks.plan_405b import CASES, LLAMA_405B, estimate, fit, measurements, plan_of, work_of, write_hollow

from benchmarks import plan_405b

TOLERANCE = 0.35
"""How far the model's total of a case may be from what was measured."""


def test_bytes_and_jobs(tmp_path: Path) -> None:
    """Llama-3.1-405B has 405,853,388,800 parameters, two bytes each: 811.7 GB for the base and for each expert.

    2 * 128256 * 16384 in the ends, and in each of 126 layers 2 * 16384**2 of queries and outputs, 2 * 1024 * 16384 of keys
    and values, 3 * 53248 * 16384 of the MLP, and two norms; one norm more.
    """
    layer = 2 * 16384**2 + 2 * 1024 * 16384 + 3 * 53248 * 16384 + 2 * 16384
    parameters = 2 * 128256 * 16384 + 126 * layer + 16384
    assert parameters == 405_853_388_800
    write_hollow(tmp_path / "models", LLAMA_405B)
    ties = plan_of("ties", tmp_path / "models")
    assert ties.read_bytes == 4 * 2 * parameters
    assert ties.write_bytes == 2 * parameters
    assert len(ties.jobs) == 126 * 9 + 3
    spectral = plan_of("tsvm", tmp_path / "models")
    assert spectral.routes == {"dense": 126 * 7, "blocks": 126 * 2 + 3}
    held = sum(f.stat().st_blocks * 512 for f in (tmp_path / "models").rglob("*") if f.is_file())
    assert held < 20e6  # holes


def test_the_work_of_a_job(tmp_path: Path) -> None:
    """Three experts of [32, 16]: Gram matrices of 16 by 16, and their eigenvectors; of rank 16, as factors, the product."""
    write_hollow(tmp_path / "models", Size(16, 32, 1, 8, 64, heads=2))
    name = "model.layers.0.mlp.up_proj.weight"
    jobs = {case: {j.output.name: j for j in plan_of(case, tmp_path / "models").jobs} for case in CASES}
    assert work_of(jobs["tsvm"][name]) == (3 * 32 * 16 * 16, 3 * 16**3)
    assert work_of(jobs["tsvm of adapters"][name]) == (3 * 16 * 32 * 16, 0)
    assert work_of(jobs["ties"][name]) == (0, 0)


def test_the_model_reproduces_its_measurements() -> None:
    model = fit(measurements())
    told: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for m in measurements():
        both = told[m.size, m.case]
        both[0] += m.seconds
        both[1] += model.seconds(m.case, m.bytes, m.work)
    assert {case for _, case in told} == set(CASES)
    off = {key: predicted / seconds - 1 for key, (seconds, predicted) in told.items()}
    assert {key: o for key, o in off.items() if abs(o) > TOLERANCE} == {}


@pytest.fixture
def cluster() -> Cluster:
    """Two nodes of four cores."""
    return plan_405b.Cluster(nodes=2, cores=4, memory=8e9, read=1e6, write=1e6)


def test_what_a_merge_waits_for(cluster: Cluster, tmp_path: Path) -> None:
    """By hand: linear in bytes alone, 1 s a megabyte, on two nodes of four cores that read and write 1 MB/s each."""
    write_hollow(tmp_path / "models", Size(64, 176, 2, 32, 256, heads=4))
    plan = plan_of("task_arithmetic", tmp_path / "models")
    model = plan_405b.Model({"task_arithmetic": 1e-6}, {"task_arithmetic": (0.0, 0.0)})
    told = estimate("task_arithmetic", plan, cluster, model)
    longest = max(j.read_bytes for j in plan.jobs)
    wanted: dict[str, Any] = {
        "reading": plan.read_bytes / 2e6,
        "writing": plan.write_bytes / 2e6,
        "cores": plan.read_bytes / 1e6 / 8,
        "memory": plan.read_bytes / 1e6 * told.largest / 16e9,
        "longest job": longest / 1e6,
    }
    assert told.bounds == pytest.approx(wanted)
    assert told.seconds == pytest.approx(plan.read_bytes / 2e6)
    assert told.processor == pytest.approx(plan.read_bytes / 1e6)
    assert (told.read, told.tasks) == (4 * told.write, 1)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    plan_405b.main(["--nodes", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(CASES)
    assert lines[3].startswith("| ties | 3.25 TB | 0.81 TB | 1015 GB |")


def test_the_table_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    """The page shows what its command prints."""
    plan_405b.main([])
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    assert capsys.readouterr().out in page, "put the table of `python -m benchmarks.plan_405b` into docs/cluster.md"
