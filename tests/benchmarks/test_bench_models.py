"""The synthetic checkpoints: real names and shapes, the same bytes every time, deltas of the promised kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.models import EXPERTS, LOW_RANK_SCALE, RANK, SIZES, TAIL_SCALE, factors, make_models

TINY = SIZES["tiny"]
MATRIX = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    make_models(made, TINY)
    return made


@pytest.mark.parametrize(
    ("size", "billions"), [("slice8b", 0.938), ("1b", 1.236), ("8b", 8.030)], ids=["slice8b", "1b", "8b"]
)
def test_sizes_are_those_of_the_models_they_stand_for(size: str, billions: float) -> None:
    """Llama-3.2-1B has 1.236 and Llama-3-8B 8.030 billion parameters."""
    entries = sum(torch.Size(shape).numel() for shape in SIZES[size].tensors().values())
    assert entries / 1e9 == pytest.approx(billions, abs=0.0005)


@pytest.mark.parametrize("name", ["base", *EXPERTS])
def test_transformers_loads_every_model(folder: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder / name, output_loading_info=True)
    assert not any(told.values())
    assert model.dtype == torch.bfloat16


def test_same_seed_same_bytes(tmp_path: Path, folder: Path, contents: Any) -> None:
    make_models(tmp_path / "again", TINY)
    make_models(tmp_path / "other", TINY, seed=1)
    here, again, other = (contents(f) for f in (folder, tmp_path / "again", tmp_path / "other"))
    weights = [n for n in here if n.endswith(".safetensors")]
    assert len(weights) == 7
    assert all(again[n] == here[n] for n in weights)
    assert all(other[n] != here[n] for n in weights)


def test_what_is_there_is_not_made_again(folder: Path) -> None:
    weights = folder / "base" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    make_models(folder, TINY)
    assert weights.stat().st_mtime_ns == before


def test_a_delta_is_its_adapter_and_noise_with_heavy_tails(folder: Path, load: Any) -> None:
    base, expert = load(folder / "base")[MATRIX].double(), load(folder / "honest")[MATRIX].double()
    left, right = factors(TINY, 0, "honest", MATRIX)
    adapter = 2 * left.double() @ right.double()
    noise = expert - base - adapter
    assert torch.linalg.matrix_rank(adapter) == RANK
    assert float(adapter.std()) == pytest.approx(LOW_RANK_SCALE, rel=0.2)
    # z^3 has variance 15 and kurtosis 46.2; a normal's is 3, and rounding to bfloat16 adds little to either.
    assert float(noise.std()) == pytest.approx(TAIL_SCALE * 15**0.5, rel=0.2)
    assert float((noise**4).mean() / (noise**2).mean() ** 2) > 15


def test_an_adapter_file_holds_these_factors(folder: Path, load: Any) -> None:
    stored = load(folder / "honest-lora")
    assert len(stored) == 2 * len(TINY.linears())
    left, right = factors(TINY, 0, "honest", MATRIX)
    module = f"base_model.model.{MATRIX.removesuffix('.weight')}"
    assert torch.equal(stored[f"{module}.lora_B.weight"], left)
    assert torch.equal(stored[f"{module}.lora_A.weight"], right)
