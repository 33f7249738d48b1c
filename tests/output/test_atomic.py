from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from triune.output import atomic

if TYPE_CHECKING:
    from pathlib import Path


def test_writes_what_was_given_and_leaves_nothing_else(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a", "ä\r\n")
    atomic.write_bytes(tmp_path / "b", b"\0")
    atomic.copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == "ä\r\n".encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a", "old")

    def fail() -> None:
        with atomic.whole_file(tmp_path / "a") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_copies_what_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    atomic.copy(tmp_path / "link", tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").read_text() == "x"
