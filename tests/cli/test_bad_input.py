"""What is wrong in the input is refused in one line that says where, what, why and what to do, and nothing is left behind.

Everything goes through the command line, as a user meets it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from conftest import Models, Outcome, Run

UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def refused(outcome: Outcome, out: Path, *words: str) -> None:
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("triune: "), outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    for word in words:
        assert word in outcome.err, f"{word!r} is not in: {outcome.err}"
    assert not out.exists() or not any(out.iterdir()), sorted(out.rglob("*"))


@pytest.fixture
def merge(triune: Run, tmp_path: Path) -> Any:
    """Merge a toy in this process; by TIES unless told otherwise."""

    def call(models: Models, *flags: str, method: str = "ties") -> Outcome:
        return triune("merge", *models.flags, "--method", method, *flags, tmp_path / "out")

    return call


@pytest.fixture
def from_file(triune: Run, models: Models, tmp_path: Path) -> Any:
    """Merge a toy by a recipe, of which each test writes a part."""

    def call(*lines: str, density: str = "density: 0.5", base: str | None = None) -> Outcome:
        entries = "\n".join(f"  - model: {models.root / n}\n    parameters: {{weight: 1.0}}" for n in models.names)
        head = f"base_model: {base or models.root / 'base'}\nmodels:\n{entries}\nparameters:\n  {density}\n"
        (tmp_path / "recipe.yaml").write_text(head + "\n".join(lines))
        return triune("merge", tmp_path / "recipe.yaml", tmp_path / "out")

    return call


def rewrite(folder: Path, change: Any) -> None:
    """Edit a model's tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- the recipe -------------------------------------------------------------------------------------------------


def test_unknown_method(merge: Any, models: Models, tmp_path: Path) -> None:
    refused(merge(models, method="dare-ties"), tmp_path / "out", "'dare-ties'", "Did you mean dare_ties?")


def test_unknown_method_in_a_file(from_file: Any, tmp_path: Path) -> None:
    refused(from_file("merge_method: tise"), tmp_path / "out", "'tise'", "recipe.yaml:11", "Did you mean ties?")


def test_unknown_recipe_key(from_file: Any, tmp_path: Path) -> None:
    told = from_file("merge_method: ties", "dtpye: float32")
    refused(told, tmp_path / "out", "recipe.yaml:12", "'dtpye'", "Did you mean dtype?")


def test_unknown_parameter(from_file: Any, tmp_path: Path) -> None:
    told = from_file("merge_method: ties", density="densty: 0.5")
    refused(told, tmp_path / "out", "recipe.yaml:10", "'densty'", "Did you mean density?")


def test_density_above_one(from_file: Any, tmp_path: Path) -> None:
    told = from_file("merge_method: ties", density="density: 1.5")
    refused(told, tmp_path / "out", "density", "[0, 1]", "1.5", "recipe.yaml:10", "0.015")


def test_weights_that_sum_to_zero(merge: Any, models: Models, tmp_path: Path) -> None:
    weights = [p for n, w in zip(models.names, (1, 1, -2), strict=True) for p in ("--set", f"weight.{n}={w}")]
    refused(merge(models, *weights, method="linear"), tmp_path / "out", "weight", "zero", "normalize: false")


def test_slices(from_file: Any, tmp_path: Path) -> None:
    told = from_file("merge_method: passthrough", "slices:", "  - sources: []")
    refused(told, tmp_path / "out", "recipe.yaml:12", "'slices'", "not supported", "models:")


def test_unreadable_yaml(from_file: Any, tmp_path: Path) -> None:
    refused(from_file("merge_method: [ties"), tmp_path / "out", "recipe.yaml:", "not readable YAML", "Look at")


def test_missing_recipe(triune: Run, tmp_path: Path) -> None:
    told = triune("merge", tmp_path / "nowhere.yaml", tmp_path / "out")
    refused(told, tmp_path / "out", "nowhere.yaml", "Check the path")


def test_only_one_path(triune: Run, tmp_path: Path) -> None:
    refused(triune("merge", tmp_path / "out"), tmp_path / "out", "Only", "RECIPE.yaml OUT")


def test_recipe_and_flags(triune: Run, models: Models, tmp_path: Path) -> None:
    told = triune("merge", "--base", models.root / "base", tmp_path / "recipe.yaml", tmp_path / "out")
    refused(told, tmp_path / "out", "recipe.yaml", "drop --base")


@pytest.mark.parametrize("command", ["merge", "plan"])
def test_a_recipe_and_experts(triune: Run, models: Models, tmp_path: Path, command: str) -> None:
    """One path and experts: it would be the output folder, if it were not a recipe that is there."""
    (tmp_path / "r3.yaml").write_text("merge_method: ties")
    for flags, named in ((models.flags, "--base and --expert"), (models.flags[2:], "--expert")):
        told = triune(command, tmp_path / "r3.yaml", *flags)
        said = f"triune: {tmp_path / 'r3.yaml'} names the models and the method already: drop {named}, or the file.\n"
        assert (told.code, told.err) == (2, said)


@pytest.mark.parametrize("command", ["merge", "plan"])
def test_a_model_among_the_paths(triune: Run, command: str) -> None:
    told = triune(command, "demo:helpful", "demo:honest")
    assert told.code == 2
    assert told.err == "triune: demo:helpful is a model: name it with -e, and its base with --base.\n"


def test_a_colon_after_the_label(triune: Run, tmp_path: Path) -> None:
    told = triune("merge", "--base", "demo:base", "-e", "helpful:demo:helpful", tmp_path / "out")
    refused(told, tmp_path / "out", "helpful:demo:helpful", "Did you mean helpful=demo:helpful?")


def test_a_hint_for_a_demo_model_can_be_typed(triune: Run, models: Models, tmp_path: Path) -> None:
    told = triune("merge", "--base", models.root / "base", "-e", "demo:helpfull", tmp_path / "out")
    refused(told, tmp_path / "out", "There is no demo:helpfull", "Did you mean demo:helpful?")


def test_an_adapter_as_output_where_the_rank_would_grow(
    triune: Run, models: Models, write_adapter: Any, tmp_path: Path
) -> None:
    """The method that is taken if none is named cannot, as it stands; the next step is named and works."""
    write_adapter(tmp_path / "a", {UP: (48, 32)}, seed=1)
    flags = ("--base", models.root / "base", "-e", tmp_path / "a", "--set", "output=lora")
    told = triune("plan", *flags)
    assert told.code == 2
    assert told.err.endswith("Add --set outlier_scope=channel, take another method, or use output: full.\n")
    assert triune("plan", *flags, "--set", "outlier_scope=channel").code == 0


def test_setting_without_a_value(merge: Any, models: Models, tmp_path: Path) -> None:
    refused(merge(models, "--set", "density"), tmp_path / "out", "--set density", "key=value")


def test_setting_of_an_unknown_expert(merge: Any, models: Models, tmp_path: Path) -> None:
    told = merge(models, "--set", "weight.helpfull=2")
    refused(told, tmp_path / "out", "'helpfull'", "helpful, honest, harmless", "Did you mean helpful?")


def test_method_that_needs_a_base(triune: Run, models: Models, tmp_path: Path) -> None:
    told = triune("merge", "--expert", models.root / "helpful", "--method", "ties", tmp_path / "out")
    refused(told, tmp_path / "out", "base_model is missing", "ties")


def test_method_that_needs_two_experts(triune: Run, models: Models, tmp_path: Path) -> None:
    flags = ("--base", models.root / "base", "--expert", models.root / "helpful", "--method", "model_stock")
    refused(triune("merge", *flags, tmp_path / "out"), tmp_path / "out", "at least 2 experts", "got 1")


def test_parameters_along_the_layers_with_a_threshold_of_the_whole_model(
    merge: Any, models: Models, tmp_path: Path
) -> None:
    told = merge(models, "--set", "semantics=paper", "--set", "density=[0.2, 0.8]")
    refused(told, tmp_path / "out", "semantics: paper", "whole model", "semantics: mergekit")


# --- flags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["merge", "plan"])
def test_a_shard_size_whose_unit_was_left_out(triune: Run, models: Models, tmp_path: Path, command: str) -> None:
    told = triune(command, *models.flags, "--method", "ties", "--shard-size", "5", tmp_path / "out")
    refused(told, tmp_path / "out", "--shard-size 5 is 5 bytes. Did you mean 5GB?")


@pytest.mark.parametrize("size", ["much", "12QB", "-1GB", "0", "1.2.3GB", "9" * 400 + "GB"])
@pytest.mark.parametrize("flag", ["--max-memory", "--shard-size"])
def test_nonsense_size(merge: Any, models: Models, tmp_path: Path, flag: str, size: str) -> None:
    refused(merge(models, f"{flag}={size}"), tmp_path / "out", "size", size[:20])


def test_too_little_memory_for_a_decomposition(merge: Any, models: Models, tmp_path: Path) -> None:
    told = merge(models, "--max-memory", "10kB", method="tsvm")
    refused(told, tmp_path / "out", "--max-memory 10 kB", "tsvm", "model.", "takes", "Allow at least")


def test_unknown_device(merge: Any, models: Models, tmp_path: Path) -> None:
    refused(merge(models, "--device", "cuda:99"), tmp_path / "out", "--device cuda:99", "no such device", "cpu")


def test_nonsense_device(merge: Any, models: Models, tmp_path: Path) -> None:
    refused(
        merge(models, "--device", "gpu"),
        tmp_path / "out",
        "--device must be cpu, cuda, cuda:N, auto, or several with commas, got gpu",
    )


# --- the output folder ------------------------------------------------------------------------------------------


def test_output_not_empty(merge: Any, models: Models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    told = merge(models)
    assert told.code == 2
    assert "not empty" in told.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def test_output_is_a_file(merge: Any, models: Models, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    told = merge(models)
    assert told.code == 2
    assert "is a file" in told.err
    assert (tmp_path / "out").read_text() == "precious"


def test_output_below_a_file(triune: Run, models: Models, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    told = triune("merge", *models.flags, tmp_path / "file" / "out")
    assert told.code == 2, told.err
    assert "file" in told.err
    assert "Traceback" not in told.err


def test_disk_too_small(merge: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    refused(merge(models), tmp_path / "out", "The output takes", str(tmp_path), "1 kB free", "Name another folder")


def test_disk_fills_up_at_the_end(merge: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triune.output import atomic

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "copy", full)
        patch.setattr("triune.engine.merge.write_card", full)
        told = merge(models)
    assert told.code == 2, told.err
    assert "No space left on device" in told.err
    assert "same command" in told.err
    assert merge(models).code == 0  # and what is finished was kept


# --- models that do not fit -------------------------------------------------------------------------------------


def test_other_shapes(merge: Any, own_models: Models, tmp_path: Path) -> None:
    rewrite(own_models.root / "honest", lambda t: t.update({UP: torch.zeros(40, 32)}))
    told = merge(own_models)
    refused(told, tmp_path / "out", "honest", UP, "[40, 32]", "[48, 32]", "architecture")


def test_missing_tensors(merge: Any, own_models: Models, tmp_path: Path) -> None:
    rewrite(own_models.root / "honest", lambda t: t.pop(UP))
    refused(merge(own_models), tmp_path / "out", "honest lacks", UP, "base", "architecture")


def test_extra_tensors(merge: Any, own_models: Models, tmp_path: Path) -> None:
    extra = {f"model.layers.{i}.extra.weight": torch.zeros(2) for i in range(5)}
    rewrite(own_models.root / "honest", lambda t: t.update(extra))
    told = merge(own_models)
    refused(told, tmp_path / "out", "honest has", "model.layers.0.extra.weight", "and 2 more tensors", "base")


def test_integers_where_the_base_has_numbers(merge: Any, own_models: Models, tmp_path: Path) -> None:
    rewrite(own_models.root / "honest", lambda t: t.update({UP: torch.zeros(48, 32, dtype=torch.int8)}))
    refused(merge(own_models), tmp_path / "out", "honest", UP, "I8")


def test_other_heads_at_the_same_shapes(merge: Any, own_models: Models, tmp_path: Path) -> None:
    edit_config(own_models.root / "honest", num_attention_heads=8)
    refused(merge(own_models), tmp_path / "out", "num_attention_heads", "honest", "base", "architecture")


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def vocabulary(folder: Path, words: list[str]) -> None:
    """A word-level tokenizer of 64 tokens in the folder."""
    known = [*words, *(f"w{i}" for i in range(64 - len(words)))]
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(known)}, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_other_vocabulary(merge: Any, own_models: Models, tmp_path: Path) -> None:
    for name in own_models.tensors:
        vocabulary(own_models.root / name, ["<unk>", "hand" if name == "honest" else "foot"])
    told = merge(own_models)
    refused(told, tmp_path / "out", "honest", "64 tokens", "'foot'", "'hand'", "tokenizer_source: union")


def test_other_size_of_the_vocabulary(merge: Any, own_models: Models, tmp_path: Path) -> None:
    rewrite(own_models.root / "honest", lambda t: t.update({EMBEDDING: torch.zeros(72, 32)}))
    edit_config(own_models.root / "honest", vocab_size=72)
    told = merge(own_models)
    refused(told, tmp_path / "out", "honest", EMBEDDING, "[72, 32]", "[64, 32]", "tokenizer_source")


def test_missing_model(merge: Any, own_models: Models, tmp_path: Path) -> None:
    shutil.rmtree(own_models.root / "honest")
    refused(merge(own_models), tmp_path / "out", str(own_models.root / "honest"), "no such folder")


def test_missing_config(merge: Any, own_models: Models, tmp_path: Path) -> None:
    (own_models.root / "honest" / "config.json").unlink()
    refused(merge(own_models), tmp_path / "out", "honest", "config.json", "Fetch the whole model")


def test_pickles(merge: Any, own_models: Models, tmp_path: Path) -> None:
    (own_models.root / "honest" / "model.safetensors").rename(own_models.root / "honest" / "pytorch_model.bin")
    told = merge(own_models)
    refused(told, tmp_path / "out", "honest", "pytorch_model.bin", "pickle", "can run code", "save_pretrained")


def test_quantised_model(merge: Any, own_models: Models, tmp_path: Path) -> None:
    edit_config(own_models.root / "honest", quantization_config={"quant_method": "gptq"})
    refused(merge(own_models), tmp_path / "out", "honest", "quantised", "Dequantise it first")


def test_adapter_of_another_base(merge: Any, own_models: Models, write_adapter: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {UP: (48, 32)}, seed=1, base="org/other-model")
    told = merge(own_models, "--expert", f"extra={tmp_path / 'adapter'}")
    refused(told, tmp_path / "out", "adapter", "org/other-model", "base", "+")


def test_adapter_of_other_shapes(merge: Any, own_models: Models, write_adapter: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {UP: (96, 32)}, seed=1)
    told = merge(own_models, "--expert", f"extra={tmp_path / 'adapter'}")
    refused(told, tmp_path / "out", "adapter", UP.removesuffix(".weight"), "[96, 32]", "[48, 32]", "another base")


# --- damaged files ----------------------------------------------------------------------------------------------


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(file: Path, header: bytes, data: bytes, claimed: int | None = None) -> None:
    file.write_bytes(struct.pack("<Q", len(header) if claimed is None else claimed) + header + data)


def cut_data(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def cut_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def cut_length(file: Path) -> None:
    file.write_bytes(b"\x10\x00\x00")


def huge_header(file: Path) -> None:
    header, data = header_of(file)
    put(file, json.dumps(header).encode(), data, claimed=2**60)


def offsets_beyond_the_file(file: Path) -> None:
    header, data = header_of(file)
    start, end = header[UP]["data_offsets"]
    header[UP]["data_offsets"] = [start + 10**9, end + 10**9]
    put(file, json.dumps(header).encode(), data)


def overlap(file: Path) -> None:
    header, data = header_of(file)
    other = UP.replace("up_proj", "gate_proj")
    header[UP]["data_offsets"] = [x + 4 for x in header[other]["data_offsets"]]
    put(file, json.dumps(header).encode(), data)


def not_json(file: Path) -> None:
    header, data = header_of(file)
    put(file, b"\x80" + json.dumps(header).encode(), data)


def deep_json(file: Path) -> None:
    put(file, b"[" * 100_000, header_of(file)[1])


def no_tensors(file: Path) -> None:
    put(file, b"{}", b"")


def wrong_size(file: Path) -> None:
    header, data = header_of(file)
    header[UP]["shape"] = [48, 33]
    put(file, json.dumps(header).encode(), data)


def malformed_entry(file: Path) -> None:
    header, data = header_of(file)
    header[UP] = {"dtype": "F32", "shape": "many"}
    put(file, json.dumps(header).encode(), data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_data, ("ends at byte",)),
        (cut_header, ("the header claims", "in a file of 100")),
        (cut_length, ("the header claims",)),
        (huge_header, ("the header claims 1152921504606846976 bytes",)),
        (offsets_beyond_the_file, (UP, "ends at byte")),
        (overlap, ("overlap", UP)),
        (not_json, ("not JSON",)),
        (deep_json, ("not JSON",)),
        (no_tensors, ("names no tensor",)),
        (wrong_size, (UP, "[48, 33]", "cannot take bytes")),
        (malformed_entry, (UP, "malformed")),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.parametrize("who", ["honest", "base"])
def test_damaged_file(
    merge: Any, own_models: Models, tmp_path: Path, damage: Any, words: tuple[str, ...], who: str
) -> None:
    file = own_models.root / who / "model.safetensors"
    damage(file)
    refused(merge(own_models), tmp_path / "out", str(file), *words, "fetch it again")


def test_index_of_missing_files(merge: Any, own_models: Models, tmp_path: Path) -> None:
    folder = own_models.root / "honest"
    index = {"weight_map": {UP: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(merge(own_models), tmp_path / "out", "honest", "model-00001-of-00002.safetensors", "not in")


@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {UP: 5}, {UP: ["model.safetensors"]}, {UP: "../model.safetensors"}]
)
def test_nonsense_index(merge: Any, own_models: Models, tmp_path: Path, weight_map: Any) -> None:
    index = own_models.root / "honest" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    refused(merge(own_models), tmp_path / "out", "honest", "model.safetensors")


# --- numbers that are none --------------------------------------------------------------------------------------

ROUTES = [
    ("ties", ()),
    ("ties", ("--set", "semantics=paper", "--set", "density=0.3")),
    ("linear", ()),
    ("model_stock", ()),
    ("della", ("--set", "density=0.5")),
    ("r_tsvm", ()),
    ("dare_ties", ("--set", "semantics=paper", "--set", "density=0.5")),
]
ROUTE_NAMES = [f"{method}{'-paper' * ('semantics=paper' in flags)}" for method, flags in ROUTES]


@pytest.mark.parametrize("poison", [float("nan"), float("-inf")], ids=str)
@pytest.mark.parametrize("who", ["honest", "base"])
@pytest.mark.parametrize(("method", "flags"), ROUTES, ids=ROUTE_NAMES)
def test_not_a_number(
    merge: Any, own_models: Models, tmp_path: Path, method: str, flags: tuple[str, ...], who: str, poison: float
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][3, 5] = poison

    rewrite(own_models.root / who, spoil)
    told = merge(own_models, *flags, method=method)
    refused(told, tmp_path / "out", f"{who}: tensor {UP} holds NaN or infinity", "Check how that model was saved")


@pytest.mark.parametrize("method", ["ties", "linear", "tsvm"])
def test_not_a_number_in_an_adapter(
    merge: Any, own_models: Models, write_adapter: Any, tmp_path: Path, method: str
) -> None:
    write_adapter(tmp_path / "adapter", {UP: (48, 32)}, seed=1)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    next(iter(factors.values()))[0, 0] = float("nan")
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    told = merge(own_models, "--expert", f"extra={tmp_path / 'adapter'}", method=method)
    refused(told, tmp_path / "out", "extra", UP, "NaN or infinity")


def test_not_a_number_in_adapters_alone(triune: Run, models: Models, write_adapter: Any, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_adapter(tmp_path / f"adapter{seed}", {UP: (48, 32)}, seed=seed)
    factors = load_file(tmp_path / "adapter2" / "adapter_model.safetensors")
    next(iter(factors.values()))[0, 0] = float("inf")
    save_file(factors, tmp_path / "adapter2" / "adapter_model.safetensors")
    experts = ("--expert", f"a={tmp_path / 'adapter1'}", "--expert", f"b={tmp_path / 'adapter2'}")
    told = triune("merge", "--base", models.root / "base", *experts, "--method", "tsvm", tmp_path / "out")
    refused(told, tmp_path / "out", "b: tensor", UP, "NaN or infinity")


# --- our own mistakes -------------------------------------------------------------------------------------------


def test_our_own_mistake_is_not_blamed_on_the_user(merge: Any, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("oh")

    monkeypatch.setattr("triune.engine.merge.make_plan", broken)
    told = merge(models)
    assert told.code == 70
    assert "Traceback" in told.err
    assert "bug in triune" in told.err


# --- the command line itself ------------------------------------------------------------------------------------


def test_no_output_folder(triune: Run, models: Models) -> None:
    for args in ((), models.flags):
        told = triune("merge", *args)
        assert told.code == 2
        assert told.err == "triune: The output folder is missing: add it at the end.\n"


def test_swapped_arguments(triune: Run) -> None:
    told = triune("merge", "out", "recipe.yaml")
    assert told.code == 2
    assert "the recipe comes first, then OUT" in told.err


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_finished_merge_that_lost_a_file_is_not_called_done(
    merge: Any, triune: Run, models: Models, tmp_path: Path, name: str
) -> None:
    assert merge(models).code == 0
    assert merge(models).code == 0
    (tmp_path / "out" / name).unlink()
    told = merge(models)
    assert told.code == 2
    assert f"its {name} is missing" in told.err
    assert "triune verify" in told.err


@pytest.mark.parametrize("command", ["plan", "merge"])
def test_an_output_that_no_folder_can_be(models: Models, triune: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    flags = (command, *models.flags, "--method", "linear")
    for out, words in (
        ("file", f"The output {tmp_path / 'file'} is a file."),
        ("file/out", f"The output {tmp_path / 'file'} is a file."),
        ("lost", f"The output {tmp_path / 'lost'} is a link to nothing."),
        ("loop", f"The output {tmp_path / 'loop'} is a link to nothing."),
        ("loop/out", f"The output {tmp_path / 'loop'} is a link to nothing."),
        ("long" * 100, "The system refused: "),
    ):
        told = triune(*flags, tmp_path / out)
        assert (told.code, words in told.err) == (2, True), told.err
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_results_that_nobody_can_take() -> None:
    """Python keeps them in a buffer up to the end."""
    ours = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", "from triune.cli.main import run; run()", "methods", "--json"]
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ours, timeout=120)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1), told.stderr
    assert "triune: The system refused: [Errno 28] No space left on device." in told.stderr
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ours) as running:
        running.stdout.close()
        assert (running.stderr.read(), running.wait(120)) == ("", 0)
    closed = ["sh", "-c", '"$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, env=ours, timeout=120).returncode == 0
