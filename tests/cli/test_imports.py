"""The program starts fast, because heavy libraries are imported only by the commands that use them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Models, Run

RUN = """
import sys
sys.argv = ["triune", *{0!r}]
from triune.cli.main import run
try:
    run()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
"""
TELL = "\nimport sys; print('LOADED', *sorted(set({0!r}) & set(sys.modules)), file=sys.stderr)"
HEAVY = ("torch", "transformers", "pydantic", "numpy", "peft", "huggingface_hub")


def loaded(code: str, names: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of these libraries a fresh interpreter has imported after some code."""
    done = subprocess.run(
        [sys.executable, "-c", code + TELL.format(names)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("LOADED")]
    return set(line.split()[1:])


def test_the_check_can_fail() -> None:
    assert loaded("import numpy") == {"numpy"}
    assert "pydantic" in loaded("import triune; triune.parse_recipe")


@pytest.mark.parametrize(
    "code", ["import triune", RUN.format(["--help"]), RUN.format(["--version"])], ids=["import", "help", "version"]
)
def test_nothing_heavy(code: str) -> None:
    assert loaded(code) == set()


@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "ties"], ["methods", "--json"], ["merge", "--help"]], ids=" ".join
)
def test_methods_need_no_torch(arguments: list[str]) -> None:
    assert not loaded(RUN.format(arguments)) & {"torch", "transformers", "numpy", "peft"}


def test_a_plan_needs_no_torch(models: Models, triune: Run, tmp_path: Path) -> None:
    command, cache = ["plan", *models.flags, "--method", "tsvm"], ("--cache", str(tmp_path / "cache"))
    assert not loaded(RUN.format(command)) & {"torch", "transformers", "peft"}
    assert triune("merge", *command[1:], *cache, "--no-gate", "--quiet", tmp_path / "out").code == 0
    assert json.loads(triune(*command, *cache, "--json").out)["cache"]["there"] > 0
    assert not loaded(RUN.format([*command, *cache])) & {"torch", "transformers", "peft"}
