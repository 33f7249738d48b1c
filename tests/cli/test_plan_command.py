"""``triune plan`` refuses what ``triune merge`` refuses, adds up, and reads no weight."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

import triune as api
from triune.cli._options import recipe_of

if TYPE_CHECKING:
    from conftest import Case, Models, Run


def planned(triune: Run, *arguments: str | Path) -> dict[str, Any]:
    told = triune("plan", *arguments, "--json")
    assert told.code == 0, told.err
    found: dict[str, Any] = json.loads(told.out)
    return found


def data_bytes(folder: Path) -> int:
    """Bytes of weights in a folder, without the headers."""
    files = list(folder.glob("*.safetensors"))
    return sum(f.stat().st_size - 8 - struct.unpack("<Q", f.read_bytes()[:8])[0] for f in files)


def test_the_numbers_add_up(case: Case, models: Models, flags_of: Any, triune: Run, tmp_path: Path) -> None:
    flags = (*models.flags, *flags_of(case), "--shard-size", "30kB", "--set", "out_dtype=bfloat16")
    plan = planned(triune, *flags, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert plan["method"] == case.method
    assert plan["read_bytes"] == sum(data_bytes(models.root / n) for n in models.tensors)
    assert plan["peak_bytes"] <= plan["threads"] * max(t["memory"] for t in plan["tensors"])
    assert sum(plan["routes"].values()) == len(plan["tensors"]) == len(models.tensors["base"])
    assert triune("merge", *flags, "--quiet", "--no-gate", tmp_path / "out").code == 0
    assert plan["write_bytes"] == data_bytes(tmp_path / "out")
    assert plan["shards"] == sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    lock = json.loads((tmp_path / "out" / "triune.lock.json").read_text())
    assert plan["fingerprint"] == lock["fingerprint"]


def test_a_plan_for_people(models: Models, triune: Run) -> None:
    told = triune("plan", *models.flags, "--method", "ties", "--set", "density=0.25")
    assert told.code == 0
    for word in ("ties: Trim", "helpful = ", "density 0.25", "20 in blocks", "at the peak on"):
        assert word in told.out


def test_no_weight_is_read(models: Models, triune: Run, tmp_path: Path) -> None:
    """The data may be a hole in the file: hundreds of gigabytes that are not there."""
    shape, size = [2**18, 2**17], 2 * 2**35
    header = json.dumps({"model.norm.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}).encode()
    for name in models.tensors:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((models.root / name / "config.json").read_bytes())
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + size)
    experts = [p for n in models.names for p in ("--expert", str(tmp_path / n))]
    plan = planned(triune, "--base", tmp_path / "base", *experts, "--method", "linear")
    assert plan["read_bytes"] == 4 * size
    assert plan["write_bytes"] == size


@pytest.mark.parametrize("fault", ["method", "density", "shape", "cut", "memory", "out", "weights"])
def test_it_refuses_what_merge_refuses(own_models: Models, triune: Run, tmp_path: Path, fault: str) -> None:
    flags = [*own_models.flags, "--method", "tise" if fault == "method" else "tsvm" if fault == "memory" else "ties"]
    flags += ["--set", "density=2"] * (fault == "density")
    flags += ["--max-memory", "1kB"] * (fault == "memory")
    file = own_models.root / "honest" / "model.safetensors"
    if fault == "weights":
        flags = [*own_models.flags, "--method", "linear", "--set", "weight=0"]
    if fault == "shape":
        tensors = load_file(file)
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:7].clone()
        save_file(tensors, file)
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    if fault == "out":
        (tmp_path / "out").write_text("a file")
    plan, merge = (triune(command, *flags, tmp_path / "out") for command in ("plan", "merge"))
    assert plan.code == merge.code == 2
    assert plan.err == merge.err != ""
    assert plan.out == ""


@pytest.mark.parametrize("command", ["plan", "merge"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--executor", "slurm"], "--executor must be local or ray, got slurm."),
        (["--address", "head:6379"], "--address is of a Ray cluster"),
        (["--executor", "ray", "--threads", "2"], "--threads is for one machine."),
    ],
)
def test_a_cluster_s_options_are_checked_alike(
    models: Models, triune: Run, tmp_path: Path, command: str, options: list[str], told: str
) -> None:
    run = triune(command, *models.flags, "--method", "ties", *options, tmp_path / "out")
    assert (run.code, told in run.err) == (2, True)


def test_a_plan_asks_no_cluster(models: Models, triune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it hold the nodes to the memory of this machine."""
    plain = ("plan", *models.flags, "--method", "tsvm")
    remote = (*plain, "--executor", "ray", "--address", "nowhere:1")
    monkeypatch.setattr("triune.engine.budget.default_limit", lambda: 1000)
    assert "--max-memory 1 kB" in triune(*plain).err
    told = triune(*remote)
    assert (told.code, "limit" in told.out) == (0, False)
    assert json.loads(triune(*remote, "--json").out)["memory_limit"] is None
    assert "--max-memory 2 kB" in triune(*remote, "--max-memory", "2kB").err


def test_an_adapter_as_output(models: Models, triune: Run, write_adapter: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", {"model.layers.0.mlp.up_proj.weight": (48, 32)}, seed=1)
    flags = ("--base", models.root / "base", "--expert", tmp_path / "a", "--set", "output=lora", "--method", "tsvm")
    plan = planned(triune, *flags)
    assert plan["output"] == "lora"
    assert plan["shards"] == []
    assert plan["routes"] == {"factors": 1}
    assert plan["experts"][0]["adapter"] is True


def test_settings_that_were_probably_not_meant_are_noted(models: Models, triune: Run, tmp_path: Path) -> None:
    """A list runs over the layers, also where it has one number for each expert; a filter may match nothing."""
    weights = ("--set", "weight=[1, 2, 3]")
    notes = planned(triune, *models.flags, "--method", "ties", *weights)["notes"]
    said = "runs over the layers, first to last. For one value an expert, set it for each expert."
    assert f"weight: [1, 2, 3] {said}" in notes
    recipe = tmp_path / "r.yaml"
    entries = "\n".join(f"  - model: {models.root / n}" for n in models.names)
    recipe.write_text(
        f"merge_method: ties\nbase_model: {models.root / 'base'}\nmodels:\n{entries}\n"
        "parameters:\n  weight:\n    - {filter: mpl, value: 0.5}\n    - value: 1\n"
    )
    assert "weight: the filter 'mpl' matches no tensor." in planned(triune, recipe)["notes"]


def test_a_range_is_shown_as_one(models: Models, triune: Run) -> None:
    told = triune("plan", *models.flags, "--method", "ties", "--set", "density=[0.25, 0.75]")
    assert "density 0.25..0.75" in " ".join(told.out.split())


def test_a_demo_model_is_called_by_its_name() -> None:
    """So that --set weight.helpful=0.5 means it; a label that another expert has, or a recipe's own, is left alone."""
    experts = ["demo:helpful", "demo:honest", "honest=org/name"]
    recipe = recipe_of(None, "demo:base", experts, "ties", ["weight.helpful=0.5"])
    assert [(e.name, e.reference) for e in recipe.experts] == [
        ("helpful", "demo:helpful"),
        ("demo:honest", "demo:honest"),
        ("honest", "org/name"),
    ]
    assert recipe.experts[0].parameters == {"weight": 0.5}
    text = "{merge_method: ties, base_model: demo:base, models: [{model: demo:helpful}], parameters: {weight: 1}}"
    assert [e.name for e in api.parse_recipe(text).experts] == ["demo:helpful"]


def test_a_result_is_one_line_in_python(models: Models, tmp_path: Path) -> None:
    experts = [f"{n}={models.root / n}" for n in ("helpful", "honest")]
    base = str(models.root / "base")
    recipe = api.recipe_from_flags(base=base, experts=experts, method="task_arithmetic")
    result = api.merge(recipe, tmp_path / "out", gate=False)
    told = f"'task_arithmetic of helpful, honest on {base}', 20 tensors"
    assert repr(result) == f"MergeResult(out='{tmp_path / 'out'}', {told}, not checked)"
    assert repr(result.plan) == f"Plan({told})"
    assert recipe.text not in repr(recipe)


def test_rows_stay_whole_where_no_terminal_shows_them(models: Models) -> None:
    """Without COLUMNS, which other tests set: a file would get them broken at 80."""
    ours = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [
        sys.executable,
        "-c",
        "from triune.cli.main import run; run()",
        "plan",
        *map(str, models.flags),
        "--method",
        "r_tsvm",
    ]
    told = subprocess.run(command, capture_output=True, text=True, env=ours, timeout=300)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert max(map(len, lines)) > 150  # of the parameters, eleven of them
    assert any(line.startswith("parameters") and "rank_strength 1" in line for line in lines)
    assert not any(line.endswith(" ") for line in lines)


def test_a_box_is_drawn_with_what_the_reader_can_take() -> None:
    code = (
        "from rich import box\nfrom rich.table import Table\nfrom triune.cli._show import stdout\n"
        "table = Table('task', 'score', box=box.SIMPLE_HEAD)\ntable.add_row('toxic', '0.5')\nstdout().print(table)"
    )
    ours = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    for encoding, line in (("ascii", "|-------+"), ("utf-8", " ────")):
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, env=ours | {"PYTHONIOENCODING": encoding}, timeout=120
        )
        assert told.returncode == 0, told.stderr
        assert line in told.stdout.decode(encoding)
