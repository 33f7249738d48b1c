"""A merge takes no more memory than it says: every route by itself, and a whole merge under ``--max-memory``.

Measured as resident memory in processes of their own, over what is resident once torch is imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from triune.methods._sampled_cuts import SAMPLE

if TYPE_CHECKING:
    from conftest import Models

MEASURE = """
import json, os, re, sys, torch
from pathlib import Path
from triune.checkpoint.reader import Files
from triune.engine.inputs import Lane
from triune.engine.run import run_job
from triune.engine.merge import scan_model
from triune.engine.executors.local import LocalExecutor
from triune.engine.plan import make_plan
from triune.progress import silent
from triune.recipes import recipe_from_flags

torch.set_num_threads(1)

class Nowhere:
    def write(self, info, at, data): pass
    def write_factors(self, job, delta): return ""

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def merge(folder, case, lora):
    experts = [f"{i}={folder}/{n}" for i, n in enumerate(("b", "c", "d"))]
    recipe = recipe_from_flags(base=f"{folder}/base", experts=experts, method=case[0], settings=case[1])
    plan = make_plan(recipe)
    stats = scan_model(plan, LocalExecutor(1, 2**40), silent)
    job = plan.jobs[0]
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    with Files() as files:
        run_job(job, Lane(files), sink=Nowhere(), stats=stats)
    return job.route, job.nbytes, status("VmHWM") - before

for case in json.loads(sys.argv[3]):
    merge(sys.argv[2], case, False)  # loads what the method loads at its first use
    print(json.dumps([case[0], *merge(sys.argv[1], case, False)]))
"""
_HALF = ["weight=1", "density=0.5"]
METHODS: list[tuple[str, list[str]]] = [
    ("linear", ["weight=1"]),
    ("rewarded_soup", ["weight=0.333333333"]),
    ("model_stock", []),
    ("model_stock", ["filter_wise=true"]),
    ("task_arithmetic", ["weight=1"]),
    ("tsvm", []),
    ("r_tsvm", []),
    ("r_tsvm", ["outlier_scope=channel", "sparsity=spectral"]),
]
METHODS += [
    (m, [*_HALF, f"semantics={s}"])
    for m in ("ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties")
    for s in ("mergekit", "paper")
]


def measure(large: Path, small: Path, cases: list[tuple[str, list[str]]]) -> list[tuple[str, str, int, int]]:
    """(method, route, estimate, measured) of one tensor for each case."""
    command = [sys.executable, "-c", MEASURE, str(large), str(small), json.dumps(cases)]
    # A fixed threshold: every buffer goes back to the system when it is freed, and is seen when it is taken again.
    env = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "PATH": "/usr/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, env=env)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def write_models(write: Any, models: Models, root: Path, rows: int, columns: int) -> Path:
    for seed, name in enumerate(("base", "b", "c", "d")):
        generator = torch.Generator().manual_seed(seed)
        tensor = (torch.randn(rows, columns, generator=generator) * 0.1).bfloat16()
        write(root / name, {"model.layers.0.mlp.up_proj.weight": tensor}, like=models.root / "base")
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_method_takes_more_than_it_says(write: Any, models: Models, tmp_path: Path) -> None:
    large = write_models(write, models, tmp_path / "large", 1536, 512)
    small = write_models(write, models, tmp_path / "small", 48, 32)
    found = measure(large, small, METHODS)
    assert len(found) == len(METHODS)
    assert {route for _, route, _, _ in found} == {"blocks", "dense"}
    slack = 2**20  # the allocator's own, and what the interpreter takes
    over = [f"{m} {route}: says {says}, takes {takes}" for m, route, says, takes in found if takes > says + slack]
    assert not over
    assert all(takes > 2**20 for _, _, _, takes in found)  # the measurement sees something


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_thresholds_that_a_sample_aims_take_no_more_than_they_say(write: Any, models: Models, tmp_path: Path) -> None:
    """Tensors of more than a million entries, and rows that are a tensor each."""
    cases = [("ties", _HALF), ("breadcrumbs", [*_HALF, "gamma=0.01"]), ("breadcrumbs_ties", [*_HALF, "gamma=0.01"])]
    small = write_models(write, models, tmp_path / "small", 48, 32)
    for rows, columns in ((2048, 1024), (2, 1 << 20)):
        assert rows * columns > SAMPLE
        large = write_models(write, models, tmp_path / f"{rows}", rows, columns)
        found = measure(large, small, cases)
        over = [f"{m} {route}: says {says}, takes {takes}" for m, route, says, takes in found if takes > says + 2**20]
        assert (len(found), over) == (len(cases), [])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("method", "rank"), [("linear", 16), ("tsvm", 16), ("ties", 256)])
def test_adapters_take_no_more_than_they_say(
    write: Any, models: Models, write_adapter: Any, tmp_path: Path, method: str, rank: int
) -> None:
    for size, shape in (("large", (1536, 512)), ("small", (48, 32))):
        write_models(write, models, tmp_path / size, *shape)
        for seed, name in enumerate("bcd"):
            for file in (tmp_path / size / name).iterdir():
                file.unlink()
            (tmp_path / size / name).rmdir()
            write_adapter(
                tmp_path / size / name,
                {"model.layers.0.mlp.up_proj.weight": shape},
                seed=seed,
                rank=rank if size == "large" else 16,
            )
    ((_, route, says, takes),) = measure(tmp_path / "large", tmp_path / "small", [(method, ["weight=1"])])
    assert route == ("factors" if method == "tsvm" else "blocks")
    assert takes <= says + 2**20


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def peak_of(*command: str | Path) -> int:
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, command)], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory, write: Any, models: Models) -> Path:
    """A base and three experts of 400 MB each."""
    root = tmp_path_factory.mktemp("heavy")
    for seed, name in enumerate(("base", "b", "c", "d")):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"model.embed_tokens.weight": (48_000, 1024), "lm_head.weight": (48_000, 1024)}
        shapes |= {f"model.layers.{i}.mlp.up_proj.weight": (4096, 1024) for i in range(24)}
        tensors = {n: torch.randn(s, generator=generator, dtype=torch.bfloat16) for n, s in shapes.items()}
        write(root / name, tensors, like=models.root / "base", tie_word_embeddings=False)
        del tensors
    return root


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes there")
@pytest.mark.parametrize("method", ["ties", "linear"])
def test_a_merge_stays_below_its_limit(heavy: Path, tmp_path: Path, method: str) -> None:
    weights = (heavy / "base" / "model.safetensors").stat().st_size
    assert weights > 390e6
    experts = [p for n in "bcd" for p in ("--expert", str(heavy / n))]
    command = [sys.executable, "-c", "from triune.cli.main import run; run()", "merge", "--base", heavy / "base"]
    command += [*experts, "--method", method, "--max-memory", "200MB", "--no-gate", "--quiet", tmp_path / "out"]
    torch_alone = peak_of(sys.executable, "-c", "import torch")
    assert peak_of(*command) - torch_alone < 200e6
