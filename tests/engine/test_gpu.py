"""Merges on a GPU against the same on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from triune.engine import job
from triune.methods._spectral import polar

if TYPE_CHECKING:
    from conftest import Models, Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

METHODS = {
    "ties": ["--set", "density=0.4"],
    "dare_ties": ["--set", "density=0.4"],
    "tsvm": [],
    "r_tsvm": ["--set", "outlier_scope=entry"],
}


@pytest.mark.parametrize("block", [300, job.BLOCK])
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_merges_like_the_cpu(
    method: str,
    block: int,
    models: Models,
    triune: Run,
    load: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To a thousandth of what the merge changed, in blocks of a few rows and in whole tensors."""
    monkeypatch.setattr(job, "BLOCK", block)
    command = ("merge", *models.flags, "--method", method, *METHODS[method], "--set", "dtype=float32", "--quiet")
    for device in ("cpu", "cuda"):
        told = triune(*command, "--device", device, tmp_path / device)
        assert told.code == 0, told.err
    here, there = load(tmp_path / "cpu"), load(tmp_path / "cuda")
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        change = torch.linalg.vector_norm(tensor - models.tensors["base"][name].float())
        assert torch.linalg.vector_norm(there[name] - tensor) <= 1e-3 * change, name
    lock = json.loads((tmp_path / "cuda" / "triune.lock.json").read_text())
    assert lock["device"] == "cuda"
    assert "on_cpu" not in lock
    assert triune("verify", "--all", tmp_path / "cuda").code == 0


@pytest.mark.parametrize("method", METHODS)
def test_what_a_gpu_has_no_room_for_is_the_same_to_the_byte(
    method: str, models: Models, triune: Run, load: Any, tmp_path: Path
) -> None:
    command = ("merge", *models.flags, "--method", method, *METHODS[method], "--quiet")
    assert triune(*command, tmp_path / "cpu").code == 0
    assert triune(*command, "--device", "cuda", "--max-device-memory", "1", tmp_path / "cuda").code == 0
    here, there = load(tmp_path / "cpu"), load(tmp_path / "cuda")
    assert all(torch.equal(there[name], tensor) for name, tensor in here.items())
    assert json.loads((tmp_path / "cuda" / "triune.lock.json").read_text())["device"] == "cpu"


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_vectors_are_made_orthogonal_alike(shared: float) -> None:
    """Experts apart, by Newton-Schulz, and experts that are the same, by the eigendecomposition."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.linalg.qr(torch.randn(200, 40, generator=generator))[0] for _ in range(2))
    both = torch.cat([one, torch.lerp(other, one, shared)], dim=1)
    found = polar(both.cuda(), 1e-6).cpu()
    assert torch.allclose(found, polar(both, 1e-6), rtol=0, atol=1e-5)
