"""Decompositions are kept between merges, and change no byte of what comes out."""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import triune as api
from triune.checkpoint.reader import Files
from triune.engine.merge import merge
from triune.output.atomic import whole_file

if TYPE_CHECKING:
    from conftest import Models, Run

DECOMPOSED = 14
"""Matrices of the toy's two layers: q, k, v, o, gate, up, down."""
CASES = [("tsvm", ()), ("r_tsvm", ()), ("r_tsvm", ("--set", "outlier_scope=task"))]


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many matrices were decomposed."""
    module = importlib.import_module("triune.methods._spectral")
    counted, inner = Counter[str](), module.truncated_svd

    def counting(*arguments: Any) -> Any:
        counted["svd"] += 1
        return inner(*arguments)

    monkeypatch.setattr(module, "truncated_svd", counting)
    return counted


@pytest.fixture
def the_same_without(triune: Run, load: Any, tmp_path: Path) -> Callable[..., bool]:
    """Whether a merge takes nothing from the folder ``cache`` that it would not compute."""

    def call(*command: str) -> bool:
        kept = ("--cache", tmp_path / "cache")
        assert triune(*command, *kept, tmp_path / "cached").code == triune(*command, tmp_path / "fresh").code == 0
        cached, fresh = load(tmp_path / "cached"), load(tmp_path / "fresh")
        return all(torch.equal(cached[name], fresh[name]) for name in fresh)

    return call


@pytest.mark.parametrize(("method", "more"), CASES, ids=["tsvm", "r_tsvm", "task"])
def test_the_same_bytes_with_and_without(
    models: Models, triune: Run, contents: Any, tmp_path: Path, count: Counter[str], method: str, more: tuple[str, ...]
) -> None:
    command = ("merge", *models.flags, "--method", method, *more, "--quiet", "--no-gate")
    first = ("--set", "weight.helpful=0.3", "--set", "scaling=1.3")
    second = ("--set", "weight.honest=0.0", "--set", "weight.harmless=-2", "--set", "scaling=0.7")
    kept = ("--cache", tmp_path / "cache")
    made = {}
    for name, settings in (("first", first), ("second", second)):
        # The card and the lock name the folder's name: each pair has the same.
        assert triune(*command, *settings, "--threads", "1", tmp_path / name / "out").code == 0
        made[name] = contents(tmp_path / name / "out")
    count.clear()
    assert triune(*command, *first, *kept, "--threads", "1", tmp_path / "a" / "out").code == 0
    assert count["svd"] == 3 * DECOMPOSED
    assert triune(*command, *second, *kept, "--threads", "3", tmp_path / "b" / "out").code == 0
    assert triune(*command, *first, *kept, "--threads", "2", tmp_path / "c" / "out").code == 0
    assert count["svd"] == 3 * DECOMPOSED  # none in the second and third
    assert contents(tmp_path / "a" / "out") == contents(tmp_path / "c" / "out") == made["first"]
    assert contents(tmp_path / "b" / "out") == made["second"]
    assert len(list((tmp_path / "cache").iterdir())) == DECOMPOSED


def test_a_simplex_of_66_points_decomposes_once(models: Models, tmp_path: Path, count: Counter[str]) -> None:
    points = [(i / 10, j / 10, (10 - i - j) / 10) for i in range(11) for j in range(11 - i)]
    assert len(points) == 66  # 11 * 12 / 2
    files = set()
    for number, weights in enumerate(points):
        named = [f"weight.{n}={w}" for n, w in zip(models.names, weights, strict=True)]
        experts = [f"{n}={models.root / n}" for n in models.names]
        recipe = api.recipe_from_flags(base=str(models.root / "base"), experts=experts, method="tsvm", settings=named)
        out = tmp_path / str(number)
        merge(recipe, out, threads=1, gate=False, cache=tmp_path / "cache")
        files.add((out / "model.safetensors").read_bytes())
    assert count["svd"] == 3 * DECOMPOSED
    assert len(files) == 66


def test_what_else_changes_is_decomposed_again(
    own_models: Models, triune: Run, tmp_path: Path, count: Counter[str]
) -> None:
    command = ("merge", *own_models.flags, "--method", "tsvm", "--quiet", "--no-gate", "--cache", tmp_path / "cache")
    assert triune(*command, tmp_path / "1").code == 0
    assert triune(*command, "--set", "polar_tol=0.1", tmp_path / "2").code == 0
    assert count["svd"] == 2 * 3 * DECOMPOSED
    expert = next((own_models.root / "honest").glob("*.safetensors"))
    expert.write_bytes(expert.read_bytes())  # as if it had been trained further: its time of change is another
    assert triune(*command, tmp_path / "3").code == 0
    assert count["svd"] == 3 * 3 * DECOMPOSED


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-40] ^= 0x80
    file.write_bytes(data)


def change_a_fact(file: Path) -> None:
    data = file.read_bytes()
    at = data.index(b".", data.index(b"norms")) + 1  # the first decimal of a norm
    file.write_bytes(data[:at] + (b"1" if data[at : at + 1] != b"1" else b"2") + data[at + 1 :])


def change_a_shape(file: Path) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["left"]["shape"].reverse()
    file.write_bytes(data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(length) + data[8 + length :])


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, change_a_fact, change_a_shape])
def test_a_damaged_file_is_made_again(
    models: Models, triune: Run, load: Any, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    command = ("merge", *models.flags, "--method", "tsvm", "--quiet", "--no-gate", "--cache", tmp_path / "cache")
    assert triune(*command, tmp_path / "1").code == 0
    files = sorted((tmp_path / "cache").iterdir())
    for file in files[:-1]:
        damage(file)
    told = triune(*command, "--json", tmp_path / "2")
    assert (told.code, json.loads(told.out)["from_cache"]) == (0, 1)
    one, two = load(tmp_path / "1"), load(tmp_path / "2")
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_a_file_under_another_name_is_made_again(models: Models, triune: Run, contents: Any, tmp_path: Path) -> None:
    """Whole, and of another tensor: of the same shape, or not."""
    command = ("merge", *models.flags, "--method", "tsvm", "--quiet", "--no-gate", "--cache", tmp_path / "cache")
    assert triune(*command, tmp_path / "1" / "out").code == 0
    files = sorted((tmp_path / "cache").iterdir(), key=lambda file: file.stat().st_size)
    whole = [file.read_bytes() for file in files]
    assert len({len(data) for data in whole}) > 1
    for file, data in zip(files, [whole[1], whole[0], *whole[:-2]], strict=True):
        file.write_bytes(data)
    assert json.loads(triune("plan", *command[1:-4], *command[-2:], "--json").out)["cache"]["there"] == 0
    told = triune(*command, "--json", tmp_path / "2" / "out")
    assert (told.code, json.loads(told.out)["from_cache"]) == (0, 0)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert [file.read_bytes() for file in files] == whole


def test_a_time_that_was_set_back_hides_no_change(
    own_models: Models, triune: Run, the_same_without: Callable[..., bool], tmp_path: Path
) -> None:
    command = ("merge", *own_models.flags, "--method", "tsvm", "--quiet", "--no-gate")
    assert triune(*command, "--cache", tmp_path / "cache", tmp_path / "1").code == 0
    expert = next((own_models.root / "honest").glob("*.safetensors"))
    before = expert.stat()
    save_file({name: tensor * 1.5 for name, tensor in load_file(expert).items()}, expert, {"format": "pt"})
    os.utime(expert, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert expert.stat().st_size == before.st_size
    assert the_same_without(*command)


def test_what_is_kept_is_not_fetched_from_the_disk(
    models: Models, triune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an expert's matrices nothing is announced to the system, which would begin to read."""
    asked = set[tuple[str, str]]()
    monkeypatch.setattr(Files, "advise", lambda self, info: asked.add((Path(info.file).parent.name, info.name)))
    command = ("merge", *models.flags, "--method", "tsvm", "--quiet", "--no-gate", "--cache", tmp_path / "cache")
    names = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    for out, wanted in (("1", len(models.names) * DECOMPOSED), ("2", 0)):
        asked.clear()
        assert triune(*command, tmp_path / out).code == 0
        matrices = {(model, name) for model, name in asked if name.split(".")[-2] in names}
        assert len([model for model, _ in matrices if model in models.names]) == wanted
        assert len([model for model, _ in matrices if model == "base"]) == DECOMPOSED


def test_an_input_that_changes_meanwhile(
    own_models: Models,
    triune: Run,
    the_same_without: Callable[..., bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was decomposed before must not be found under the name of what there is now."""
    command = ("merge", *own_models.flags, "--method", "tsvm", "--quiet", "--no-gate", "--threads", "1")
    expert = next((own_models.root / "honest").glob("*.safetensors"))
    module = importlib.import_module("triune.methods._spectral")
    inner, changed = module.truncated_svd, {name: tensor * 1.5 for name, tensor in load_file(expert).items()}

    def changing(*arguments: Any) -> Any:
        if changed:
            save_file(changed, tmp_path / "changed.safetensors", {"format": "pt"})
            (tmp_path / "changed.safetensors").rename(expert)
            changed.clear()
        return inner(*arguments)

    monkeypatch.setattr(module, "truncated_svd", changing)
    assert triune(*command, "--cache", tmp_path / "cache", tmp_path / "1").code == 0
    assert not changed
    assert the_same_without(*command)


def test_a_cache_that_cannot_be_written_loses_nothing(
    models: Models, triune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that are finished by then are not merged again."""
    module, written = importlib.import_module("triune.engine.cache"), list[Path]()
    inner = module.write_bytes

    def writing(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 3:
            with whole_file(path):
                raise OSError(28, "No space left on device")
        inner(path, data)

    monkeypatch.setattr(module, "write_bytes", writing)
    command = ("merge", *models.flags, "--method", "tsvm", "--no-gate", "--threads", "1", "--cache", tmp_path / "cache")
    told = triune(*command, tmp_path / "out")
    full = f"No space left on device: '{written[2]}'. What is finished is kept"
    assert (told.code, full in told.err) == (2, True)
    again = triune(*command, "--json", tmp_path / "out")
    assert (again.code, json.loads(again.out)["resumed"] >= 2) == (0, True)


def test_killed_in_the_middle(models: Models, triune: Run, start: Any, contents: Any, tmp_path: Path) -> None:
    command = ("merge", *models.flags, "--method", "tsvm", "--quiet", "--no-gate", "--threads", "1")
    cache, out = tmp_path / "cache", tmp_path / "b" / "out"
    assert triune(*command, tmp_path / "a" / "out").code == 0
    running = start(*command, "--cache", cache, out)
    until = time.monotonic() + 60
    while time.monotonic() < until and running.poll() is None and len(list(cache.glob("[!.]*"))) < 3:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert triune(*command, "--cache", cache, out).code == 0
    assert contents(out) == contents(tmp_path / "a" / "out")


def test_a_plan_tells_its_size(models: Models, triune: Run, tmp_path: Path) -> None:
    flags, cache = (*models.flags, "--method", "tsvm", "--cache", tmp_path / "cache"), tmp_path / "cache"
    before = json.loads(triune("plan", *flags, "--json").out)["cache"]
    assert (before["tensors"], before["there"]) == (DECOMPOSED, 0)
    assert not cache.exists()
    assert triune("merge", *flags, "--quiet", "--no-gate", tmp_path / "out").code == 0
    after = json.loads(triune("plan", *flags, "--json").out)["cache"]
    assert after["there"] == DECOMPOSED
    taken = sum(file.stat().st_size for file in cache.iterdir())
    assert 0.5 * after["most_bytes"] < taken <= after["most_bytes"]
    assert "14 of 14 decompositions are in" in triune("plan", *flags).out
    again = triune("merge", *flags, "--no-gate", "--set", "scaling=0.5", tmp_path / "again")
    assert "14 of them decomposed by an earlier merge" in again.err
    kept, fresh = (json.loads(triune("plan", *f, "--json").out)["flops"] for f in (flags, flags[:-2]))
    assert kept < 0.5 * fresh


def test_a_file_is_no_cache(models: Models, triune: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = triune("merge", *models.flags, "--cache", tmp_path / "file", tmp_path / "out")
    assert told.code == 2
    assert "is a file. Name a folder" in told.err
    assert not (tmp_path / "out").exists()
    below = triune("plan", *models.flags, "--cache", tmp_path / "file" / "kept")
    assert (below.code, f"{tmp_path / 'file'} is a file. Name a folder" in below.err) == (2, True)
    for target in ("nowhere", "link"):
        (tmp_path / "link").symlink_to(target)
        told = triune("plan", *models.flags, "--cache", tmp_path / "link")
        assert (told.code, f"{tmp_path / 'link'} is a link to nothing." in told.err) == (2, True)
        (tmp_path / "link").unlink()
    told = triune("merge", *models.flags, "--cache", "", tmp_path / "out")
    assert (told.code, "--cache names nothing." in told.err) == (2, True)


@pytest.mark.parametrize("command", ["plan", "merge"])
def test_no_model_becomes_a_cache(models: Models, triune: Run, tmp_path: Path, command: str) -> None:
    """Whoever loads ``*.safetensors`` of a folder would take decompositions for weights."""
    (tmp_path / "link").symlink_to(tmp_path)
    for folder, out in (
        ("out", "out"),
        ("out/kept", "out"),
        ("kept", "kept/out"),
        ("out/deep/../kept", "out"),
        ("link/out/kept", "out"),
        ("kept", "link/kept/out"),
    ):
        told = triune(command, *models.flags, "--method", "tsvm", "--cache", tmp_path / folder, tmp_path / out)
        assert (told.code, f"{folder} is, holds or lies in the output" in told.err) == (2, True)
        assert [p.name for p in tmp_path.iterdir()] == ["link"]
    base = models.root / "base"
    told = triune(command, *models.flags, "--method", "tsvm", "--cache", base, tmp_path / "out")
    assert (told.code, f"--cache {base} is the folder of a model." in told.err) == (2, True)


@pytest.mark.parametrize("command", ["plan", "merge"])
def test_a_cache_has_a_folder_of_its_own(models: Models, triune: Run, tmp_path: Path, command: str) -> None:
    """Nobody could tell its files from others, and demo:base would hide the model of that name."""
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / ".DS_Store").write_text("")
    (tmp_path / "busy" / ".snapshot").mkdir()
    assert triune(command, *models.flags, "--cache", tmp_path / "busy", tmp_path / command).code == 0
    (tmp_path / "busy" / "recipe.yaml").write_text("")
    holding = f"--cache {tmp_path / 'busy'} holds other things, such as recipe.yaml. Name a folder of its own."
    for folder, sentence in (
        (tmp_path / "busy", holding),
        ("demo:base", "--cache demo:base is the name of a model. Name a folder of this machine."),
        ("s3://bucket/kept", "--cache s3://bucket/kept is the name of a model."),
        (tmp_path / ("long" * 100), "The system refused: [Errno 36] File name too long"),
    ):
        told = triune(command, *models.flags, "--method", "tsvm", "--cache", folder, tmp_path / "out")
        assert (told.code, sentence in told.err) == (2, True)
        assert not (tmp_path / "out").exists()


def test_a_cache_of_nothing_is_told(models: Models, triune: Run, write_adapter: Any, tmp_path: Path) -> None:
    nothing = f"--cache {tmp_path / 'kept'}: ties decomposes nothing, so nothing is kept there."
    flags = (*models.flags, "--method", "ties", "--cache", tmp_path / "kept")
    assert nothing in triune("plan", *flags).out
    assert json.loads(triune("plan", *flags, "--json").out)["cache"]["note"] == nothing
    assert nothing in triune("merge", *flags, "--no-gate", tmp_path / "out").err
    write_adapter(tmp_path / "a", {"model.layers.0.mlp.up_proj.weight": (48, 32)}, seed=1)
    adapter = ("--base", models.root / "base", "-e", f"a={tmp_path / 'a'}", "--method", "tsvm")
    told = triune("plan", *adapter, "--cache", tmp_path / "kept").out
    assert "tsvm decomposes no more than the adapters' factors, so nothing is kept there." in told
    assert not (tmp_path / "kept").exists()
