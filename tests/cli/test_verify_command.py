"""``triune verify`` believes a folder only where every byte is what the lock file says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from conftest import Case, Models, Run

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def out(own_models: Models, triune: Run, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    assert triune("merge", *own_models.flags, "--method", "ties", "--set", "density=0.4", "--quiet", folder).code == 0
    return folder


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_good_folder(case: Case, models: Models, flags_of: Any, triune: Run, tmp_path: Path) -> None:
    assert triune("merge", *models.flags, *flags_of(case), "--quiet", "--no-gate", tmp_path / "out").code == 0
    told = triune("verify", tmp_path / "out", "--all", "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert found["problems"] == []
    assert found["note"] == ""
    assert found["tensors"] == found["recomputed"] == len(models.tensors["base"])


def test_a_sample(out: Path, triune: Run) -> None:
    told = triune("verify", out, "--sample", "3")
    assert told.code == 0
    assert "20 tensors compared, 3 tensors recomputed, 0 differences" in told.err
    assert json.loads(triune("verify", out, "--sample", "0", "--json").out)["recomputed"] == 0


def test_counts_read_as_english(out: Path, triune: Run) -> None:
    flip(out / "README.md", -1)
    told = triune("verify", out, "--sample", "1")
    assert "20 tensors compared, 1 tensor recomputed, 1 difference.\n" in told.err


def test_an_adapter_has_its_tensors_in_a_file(models: Models, triune: Run, write_adapter: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", {UP: (48, 32)}, seed=1)
    flags = ("--base", models.root / "base", "-e", f"a={tmp_path / 'a'}", "--method", "tsvm", "--set", "output=lora")
    assert triune("merge", *flags, "--quiet", "--no-gate", tmp_path / "merged").code == 0
    told = triune("verify", tmp_path / "merged")
    assert told.code == 0
    assert " files compared, 1 tensor recomputed, 0 differences." in told.err


def test_another_byte_in_a_shard(out: Path, triune: Run) -> None:
    names = list(load_file(out / "model.safetensors"))
    flip(out / "model.safetensors", -1)
    told = triune("verify", out, "--json")
    assert told.code == 1
    (problem,) = json.loads(told.out)["problems"]
    assert "its bytes have changed since the merge" in problem
    assert problem.split(":")[0] in names
    assert told.err.strip() == f"triune: {out} is not what its lock file says. {problem}"


@pytest.mark.parametrize("name", ["config.json", "README.md", "mergekit_config.yml", "generation_config.json"])
def test_another_byte_beside_the_weights(out: Path, triune: Run, name: str) -> None:
    (out / name).write_text((out / name).read_text() + " \n")
    told = triune("verify", out, "--json")
    assert told.code == 1
    assert json.loads(told.out)["problems"] == [f"{name} has changed since the merge."]


def test_a_missing_file(out: Path, triune: Run) -> None:
    (out / "generation_config.json").unlink()
    told = triune("verify", out, "--json")
    assert told.code == 1
    assert json.loads(told.out)["problems"] == ["generation_config.json is missing."]


def test_a_changed_header(out: Path, triune: Run) -> None:
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.9.mlp.up_proj.weight"] = tensors.pop(UP)
    save_file(tensors, out / "model.safetensors")
    told = triune("verify", out)
    assert told.code == 1
    assert "other tensors than the merge wrote" in told.err


def test_a_changed_input(own_models: Models, out: Path, triune: Run) -> None:
    file = own_models.root / "honest" / "model.safetensors"
    tensors = load_file(file)
    tensors[UP] = tensors[UP] * 2
    save_file(tensors, file)
    told = triune("verify", out, "--all", "--json")
    assert told.code == 1
    assert json.loads(told.out)["problems"] == [f"{UP}: recomputing it from the inputs gives other bytes."]


def test_inputs_that_are_gone(own_models: Models, out: Path, triune: Run) -> None:
    shutil.rmtree(own_models.root / "honest")
    told = triune("verify", out)
    assert told.code == 0
    assert "20 tensors compared, 0 tensors recomputed, 0 differences" in told.err
    assert "Nothing was recomputed from the inputs" in told.err
    assert "honest" in told.err


def test_from_another_working_directory(
    models: Models, triune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe with relative paths finds its models from wherever it is verified."""
    monkeypatch.chdir(models.root)
    flags = ("--base", "base", "--expert", "helpful", "--expert", "honest", "--method", "ties")
    assert triune("merge", *flags, "--quiet", tmp_path / "out").code == 0
    monkeypatch.chdir(tmp_path)
    told = triune("verify", "out", "--json")
    assert told.code == 0
    assert json.loads(told.out)["recomputed"] == 8


def test_no_lock(tmp_path: Path, triune: Run) -> None:
    told = triune("verify", tmp_path)
    assert told.code == 2
    assert "no triune.lock.json" in told.err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": []}', "\ufffd"])
def test_a_broken_lock(tmp_path: Path, triune: Run, content: str) -> None:
    (tmp_path / "triune.lock.json").write_text(content)
    told = triune("verify", tmp_path)
    assert told.code == 2, told.err
    assert "triune.lock.json" in told.err
    assert "Traceback" not in told.err
