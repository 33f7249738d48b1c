"""Limits of containers, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from triune.engine import cgroup
from triune.engine.budget import default_limit
from triune.engine.cores import available_cores

GIB = 2**30


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, Path]:
    """A job in a slice: ``/slice/job``."""
    job = tmp_path / "cgroup" / "slice" / "job"
    job.mkdir(parents=True)
    (tmp_path / "self").write_text("1:name=systemd:/elsewhere\n0::/slice/job\n")
    return tmp_path / "cgroup", tmp_path / "self"


def limit(group: Path, maximum: str, current: int, files: int = 0) -> None:
    (group / "memory.max").write_text(f"{maximum}\n")
    (group / "memory.current").write_text(f"{current}\n")
    (group / "memory.stat").write_text(
        f"anon 1\ninactive_file {files // 4}\nactive_file {files // 4}\nslab_reclaimable {files // 2}\n"
    )


def test_memory_until_the_tightest_limit(tree: tuple[Path, Path]) -> None:
    """The job has 8 - 3 GiB left and 1 GiB of files to drop, its slice 16 - 14: two are left."""
    root, _ = tree
    limit(root / "slice" / "job", str(8 * GIB), 3 * GIB, 1 * GIB)
    assert cgroup.memory_left(*tree) == 6 * GIB
    limit(root / "slice", str(16 * GIB), 14 * GIB)
    assert cgroup.memory_left(*tree) == 2 * GIB
    limit(root / "slice", "max", 14 * GIB)
    assert cgroup.memory_left(*tree) == 6 * GIB
    limit(root / "slice" / "job", str(8 * GIB), 9 * GIB)
    assert cgroup.memory_left(*tree) == 0


def test_cores_of_a_quota(tree: tuple[Path, Path]) -> None:
    """150 of 100 ms are one and a half cores, for which two lanes are wanted."""
    root, _ = tree
    (root / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    assert cgroup.cores(*tree) is None
    (root / "slice" / "cpu.max").write_text("150000 100000\n")
    assert cgroup.cores(*tree) == 2
    (root / "slice" / "job" / "cpu.max").write_text("5000 100000\n")
    assert cgroup.cores(*tree) == 1


def test_no_groups_no_limit(tmp_path: Path, tree: tuple[Path, Path]) -> None:
    assert cgroup.memory_left(*tree) is None
    assert cgroup.memory_left(tmp_path, tmp_path / "missing") is None
    (tmp_path / "self").write_text("4:memory:/docker/1\n")  # version 1
    assert cgroup.cores(*tree) is None


def test_the_defaults_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "memory_left", lambda: GIB)
    monkeypatch.setattr(cgroup, "cores", lambda: 1)
    assert default_limit() == GIB // 2
    assert available_cores() == 1
