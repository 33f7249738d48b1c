"""Scores from a real cluster of two nodes are those of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from triune.data.pairs import Pair, to_bytes
from triune.testing import perturbed, write_checkpoint
from triune.testing.chat import toy_chat

if TYPE_CHECKING:
    from conftest import Run

pytestmark = pytest.mark.slow

WORDS = ("cup", "river", "lantern", "maple", "signal", "velvet", "pocket", "harbour")
PAIRS = [
    Pair(f"{i}", f"What is a {WORDS[i % 8]}?", "A " + "thing " * (i % 7 + 1), "No " * (i % 5 + 1), dimension)
    for i, dimension in enumerate(("honesty", "helpfulness") * 35)
]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two specialists."""
    root = tmp_path_factory.mktemp("toys")
    tensors = toy_chat(root / "base")
    config = json.loads((root / "base" / "config.json").read_text())
    for seed, name in enumerate(("honesty", "helpfulness"), 1):
        write_checkpoint(root / name, perturbed(tensors, seed, scale=0.05), config)
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch a share, so that there are several."""
    monkeypatch.setattr("triune.scorers.spread.BATCHES", 1)


@pytest.mark.usefixtures("small")
def test_the_same_mixture(toys: Path, on_cluster: tuple[str, ...], triune: Run, tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_bytes(to_bytes(PAIRS))
    command = ("mix", "hummer", tmp_path / "pool.jsonl", "-B", "4", "--base", toys / "base")
    command += ("--specialist", f"honesty={toys / 'honesty'}", "--specialist", f"helpfulness={toys / 'helpfulness'}")
    for name, where in (("local", ()), ("ray", on_cluster)):
        told = triune(*command, *where, "-o", tmp_path / f"{name}.jsonl")
        assert told.code == 0, told.err
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    kept = {name: sorted(p.name for p in (tmp_path / f"{name}.scores").iterdir()) for name in ("local", "ray")}
    assert kept["ray"] == kept["local"]  # either continues where the other was stopped


def test_nothing_to_do_there(triune: Run, tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_bytes(to_bytes(PAIRS))
    told = triune(
        "mix", "heuristic", tmp_path / "pool.jsonl", "-B", "4", "-o", tmp_path / "o.jsonl", "--executor", "ray"
    )
    assert told.code == 2
    assert "needs no rewards" in told.err
