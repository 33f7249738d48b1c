"""The committed leaderboard is what the committed store says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from triune.evals import store

if TYPE_CHECKING:
    from conftest import Outcome

FOLDER = Path(__file__).parents[2] / "docs" / "comparison"


def test_the_leaderboard_is_that_of_the_store(triune: Callable[..., Outcome], tmp_path: Path) -> None:
    told = triune("leaderboard", FOLDER / "results.db", "--reference", "base", "-o", tmp_path / "leaderboard.md")
    assert told.code == 0, told.err
    assert (tmp_path / "leaderboard.md").read_text() == (FOLDER / "leaderboard.md").read_text()


def test_all_models_answered_the_same_rows() -> None:
    rows: dict[str, set[frozenset[str]]] = {}
    for result in store.read(FOLDER / "results.db"):
        if result.split == "report":
            rows.setdefault(result.benchmark, set()).add(frozenset(result.scores))
    assert len(rows) == 12
    assert all(len(ids) == 1 for ids in rows.values())
