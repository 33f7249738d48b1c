"""The number of threads and the cut into shards change nothing, and plain transformers loads what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import triune as api

if TYPE_CHECKING:
    from conftest import Case, Models, Run


def test_threads_and_shards(
    case: Case, models: Models, flags_of: Any, triune: Run, contents: Any, load: Any, tmp_path: Path
) -> None:
    command = ("merge", *models.flags, *flags_of(case), "--quiet", "--no-gate")
    files = {}
    for threads in ("1", "2", "3"):
        out = tmp_path / threads / "out"
        assert triune(*command, "--threads", threads, out).code == 0
        files[threads] = contents(out)
    assert files["1"] == files["2"] == files["3"]
    assert triune(*command, "--shard-size", "20kB", tmp_path / "shards").code == 0
    one, many = load(tmp_path / "1" / "out"), load(tmp_path / "shards")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[n], many[n]) for n in one)


def test_the_index_of_shards(models: Models, triune: Run, load: Any, tmp_path: Path) -> None:
    assert triune("merge", *models.flags, "--shard-size", "20kB", tmp_path / "out").code == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    count = len(files)
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert count > 2
    assert set(index["weight_map"].values()) == set(files)
    tensors = load(tmp_path / "out")
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert all((tmp_path / "out" / f).stat().st_size <= 20_000 + 8192 for f in files)  # the limit is on the weights


@pytest.mark.parametrize("shards", ["20kB", "5GB"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_loads_it(make_toy: Any, triune: Run, tmp_path: Path, shards: str, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    models: Models = make_toy(tmp_path / "models", tied=tied)
    parameters = {"weight": 1.0, "density": 0.5}
    flags = ("--method", "ties", "--set", "weight=1", "--set", "density=0.5", "--shard-size", shards)
    assert triune("merge", *models.flags, *flags, tmp_path / "out").code == 0
    loaded, said = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    by_hand = AutoModelForCausalLM.from_pretrained(models.root / "base")
    merged = {
        n: api.merge_tensors("ties", models.stack(n), b, parameters=parameters, name=n)
        for n, b in models.tensors["base"].items()
    }
    if tied:
        merged["lm_head.weight"] = merged["model.embed_tokens.weight"]
    by_hand.load_state_dict(merged)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=ids).logits, by_hand(input_ids=ids).logits)
        base = AutoModelForCausalLM.from_pretrained(models.root / "base")
        assert not torch.equal(loaded(input_ids=ids).logits, base(input_ids=ids).logits)
