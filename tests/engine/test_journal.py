"""A working folder is continued only by the merge that it belongs to, and by one process at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triune.checkpoint.index import TensorInfo, checkpoint
from triune.engine.job import Done
from triune.engine.journal import Journal
from triune.engine.lock import _finite
from triune.errors import UserError

DONE = Done("w", "00", {-1: "11"}, 1.0, 1.0, (0.5,), 0.5)


def test_what_is_added_is_found_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", "one", "a merge") as journal:
        journal.add(DONE)
    with Journal(tmp_path / "out", "one", "a merge") as journal:
        assert journal.finished == {"w": DONE}


def test_lines_without_their_plan_are_not_trusted(tmp_path: Path) -> None:
    """A kill while a working folder is thrown away may leave the journal without the plan that says whose it is."""
    with Journal(tmp_path / "out", "one", "a merge") as journal:
        journal.add(DONE)
    (tmp_path / "out" / ".triune" / "plan.json").unlink()
    with Journal(tmp_path / "out", "two", "another merge") as journal:
        assert journal.finished == {}
    with Journal(tmp_path / "out", "two", "another merge") as journal:
        assert journal.finished == {}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "out", "one", "a merge"),
        pytest.raises(UserError, match=r"Another process is merging into .*out\. Wait for it"),
    ):
        Journal(tmp_path / "out", "one", "a merge")


def test_a_model_without_a_head_is_tied_unless_it_says_otherwise() -> None:
    """transformers leaves a family's default out of config.json."""
    embedding = {"model.embed_tokens.weight": TensorInfo("model.embed_tokens.weight", "F32", (4, 2), "", 0)}
    head = {"lm_head.weight": TensorInfo("lm_head.weight", "F32", (4, 2), "", 32)}
    folder = Path()
    assert "lm_head.weight" in checkpoint("m", folder, embedding, {}).tied
    assert checkpoint("m", folder, embedding, {"tie_word_embeddings": False}).tied == {}
    assert checkpoint("m", folder, embedding | head, {}).tied == {}


def test_norms_that_overflow_stay_out_of_the_lock_file() -> None:
    """Strict readers of JSON know no infinity."""
    assert _finite(DONE)
    overflows: list[dict[str, Any]] = [{"merged": math.nan}, {"base": math.inf}, {"deltas": (1.0, math.inf)}]
    for changed in (*overflows, {"merged_delta": math.inf}):
        assert not _finite(replace(DONE, **changed))
