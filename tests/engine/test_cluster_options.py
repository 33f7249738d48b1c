"""What can be said about a cluster without one."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triune.checkpoint.index import TensorInfo
from triune.engine.executors import ExecutorFailed
from triune.engine.executors.ray import _get, groups
from triune.engine.job import Job
from triune.methods._spec import View

if TYPE_CHECKING:
    from conftest import Models, Run


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--executor", "slurm"), "--executor must be local or ray, got slurm."),
        (("--address", "host:6379"), "--address is of a Ray cluster: add --executor ray, or leave it out."),
        (("--executor", "ray", "--threads", "2"), "--threads is for one machine."),
        (("--executor", "ray", "--device", "cuda"), "--executor ray merges on CPUs, got --device cuda."),
    ],
)
def test_options_that_do_not_fit(
    flags: tuple[str, ...], sentence: str, models: Models, triune: Run, tmp_path: Path
) -> None:
    told = triune("merge", *models.flags, *flags, tmp_path / "out")
    assert told.code == 2
    assert told.err.startswith(f"triune: {sentence}")
    assert told.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ray_is_missing(models: Models, triune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triune.engine.executors.ray.find_spec", lambda name: None)
    told = triune("merge", *models.flags, "--executor", "ray", tmp_path / "out")
    assert told.code == 2
    assert told.err == (
        'triune: --executor ray needs ray, which is not installed. Run: pip install "triune[cluster]"\n'
    )


def test_no_cluster_there(models: Models, triune: Run, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="a cluster needs Ray: pip install 'triune[cluster]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # nobody listens
        for address in (f"127.0.0.1:{port}", "nonsense", "127.0.0.1:99999", "ray://127.0.0.1:10001"):
            told = triune("merge", *models.flags, "--executor", "ray", "--address", address, tmp_path / "out")
            assert told.code == 2
            assert told.err.strip() == (
                f"triune: --address {address}: no Ray cluster answers there. "
                "Write HOST:PORT as `ray start --head` printed it."
            )
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says it in the second line, behind numbers that help nobody."""
    ray = pytest.importorskip("ray", reason="a cluster needs Ray: pip install 'triune[cluster]'")

    def full(reference: Any) -> Any:
        raise ray.exceptions.OutOfDiskError("a631fe8d", b"address", "")

    monkeypatch.setattr(ray, "get", full)
    with pytest.raises(ExecutorFailed, match=r"no room for results: .*disk.*95%\. Make room there\.$"):
        _get("reference")


def test_ray_is_left_alone_when_not_asked_for(models: Models, tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text(
        "import sys\nfrom triune.cli.main import run\ntry:\n    run()\nfinally:\n    assert 'ray' not in sys.modules\n"
    )
    command = [sys.executable, script, "merge", *models.flags, "--no-gate", tmp_path / "out"]
    assert subprocess.run(list(map(str, command)), timeout=300).returncode == 0


def job(index: int, entries: int) -> Job:
    """A job that writes so many bytes and reads nothing."""
    info = TensorInfo(str(index), "U8", (entries,), "", 0)
    return Job(index, info, "copy", "linear", {}, View(), None, ())


@given(sizes=st.lists(st.integers(0, 50)), most=st.integers(0, 60))
def test_groups_keep_order_and_size(sizes: list[int], most: int) -> None:
    jobs = [job(i, n) for i, n in enumerate(sizes)]
    made = list(groups(jobs, most))
    assert [j for g in made for j in g] == jobs
    assert all(len(g) == 1 or sum(j.traffic for j in g) <= most for g in made)


def test_groups_by_hand() -> None:
    """At most 10: 4 + 6 fill one, 11 is too large and alone, 1 + 2 are left."""
    made: Any = groups([job(i, n) for i, n in enumerate((4, 6, 11, 1, 2))], 10)
    assert [[j.output.nbytes for j in g] for g in made] == [[4, 6], [11], [1, 2]]
