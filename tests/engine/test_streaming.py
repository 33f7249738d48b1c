"""What the engine streams in blocks from disk equals the method on whole tensors in memory.

One tensor is larger than a block, and bfloat16 inputs give each expert many deltas of exactly the same size, so that a
selection by magnitude has to split ties across blocks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import triune as api
from triune.engine.job import BLOCK
from triune.methods import find
from triune.methods._spec import View
from triune.testing import perturbed

if TYPE_CHECKING:
    from conftest import Case, Models, Run

LARGE = "model.layers.0.mlp.up_proj.weight"
SHAPES = {
    "model.embed_tokens.weight": (40, 128),
    LARGE: (2100, 128),
    "model.layers.0.mlp.down_proj.weight": (64, 48),
    "model.layers.1.self_attn.q_proj.weight": (2, 5),
    "model.norm.weight": (700,),
    "model.scale": (),
    "model.one": (1,),
}
SELECTING = ("ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties")


@pytest.fixture(scope="module")
def blocky(models: Models, write: Any, tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("blocky")
    generator = torch.Generator().manual_seed(5)
    base = {n: (torch.randn(s, generator=generator) * 0.1).bfloat16() for n, s in SHAPES.items()}
    # Experts are called 0, 1, 2, as merge_tensors calls them: the random masks go by the names.
    tensors = {"base": base} | {str(i): perturbed(base, seed=i + 1, scale=0.01) for i in range(3)}
    for name, each in tensors.items():
        write(root / name, each, like=models.root / "base")
    return type(models)(root, tensors)


def test_a_tensor_takes_several_blocks_and_has_ties(blocky: Models) -> None:
    assert math.prod(SHAPES[LARGE]) > BLOCK
    deltas = blocky.tensors["0"][LARGE].float() - blocky.tensors["base"][LARGE].float()
    sizes = deltas.abs().unique(return_counts=True)[1]
    assert sizes.max() > 100


def in_memory(blocky: Models, case: Case, name: str, parameters: dict[str, Any]) -> torch.Tensor:
    base = blocky.tensors["base"][name].float()
    return api.merge_tensors(case.method, blocky.stack(name), base, parameters=parameters, name=name, seed=3)


def test_streaming_equals_memory(
    case: Case, blocky: Models, flags_of: Any, triune: Run, load: Any, tmp_path: Path
) -> None:
    if case.whole_model:
        pytest.skip("a statistic of the whole model: compared below")
    flags = (*flags_of(case, blocky.names), "--set", "out_dtype=float32", "--set", "seed=3", "--no-gate", "--quiet")
    assert triune("merge", *blocky.flags, *flags, tmp_path / "out").code == 0
    merged = load(tmp_path / "out")
    assert merged.keys() == SHAPES.keys()
    for name, got in merged.items():
        wanted = in_memory(blocky, case, name, dict(case.parameters))
        assert got.dtype == torch.float32
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
        if case.method in SELECTING:
            base = blocky.tensors["base"][name].float()
            assert torch.equal(got == base, wanted == base), f"{name}: another choice of entries"
    if case.method in SELECTING:
        base = blocky.tensors["base"][LARGE].float()
        assert 0.001 < float((merged[LARGE] == base).float().mean()) < 0.999


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_thresholds_aimed_by_a_sample(
    blocky: Models, triune: Run, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, threads: str
) -> None:
    """With a sample of 500 entries the large tensor is found in windows or, where they miss, by histograms."""
    flags = ("--method", method, "--set", "density=0.4", "--set", "out_dtype=float32", "--no-gate", "--quiet")
    assert triune("merge", *blocky.flags, *flags, tmp_path / "whole").code == 0
    monkeypatch.setattr("triune.methods._sampled_cuts.SAMPLE", 500)
    assert triune("merge", *blocky.flags, *flags, "--threads", threads, tmp_path / "sampled").code == 0
    whole, sampled = load(tmp_path / "whole"), load(tmp_path / "sampled")
    for name in SHAPES:
        assert torch.equal(whole[name], sampled[name]), name


def test_another_seed_gives_other_masks(blocky: Models, triune: Run, load: Any, tmp_path: Path) -> None:
    flags = ("--method", "dare_linear", "--set", "density=0.5", "--no-gate", "--quiet")
    for seed in "12":
        assert triune("merge", *blocky.flags, *flags, "--set", f"seed={seed}", tmp_path / seed).code == 0
    assert not torch.equal(load(tmp_path / "1")[LARGE], load(tmp_path / "2")[LARGE])


# --- statistics of the whole model ------------------------------------------------------------------------------


def ties_by_hand(deltas: torch.Tensor, weight: list[float], density: float) -> torch.Tensor:
    """The authors' merge of flattened models, ``[experts, entries]``."""
    count = deltas.shape[1]
    trimmed = torch.zeros_like(deltas)
    for t, delta in enumerate(deltas):
        position = min(max(count - int(count * density), 1), count)
        threshold = delta.abs().kthvalue(position).values
        trimmed[t] = torch.where(delta.abs() >= threshold, delta, 0.0)
    weighted = trimmed * torch.tensor(weight)[:, None]
    total = weighted.sum(0)
    signs = total.sign()
    signs[signs == 0] = 1.0 if total.sign().sum() > 0 else -1.0
    agrees = (weighted.sign() == signs) & (weighted != 0)
    mass = (torch.tensor(weight)[:, None] * agrees).sum(0)
    return (weighted * agrees).sum(0) / mass.where(mass != 0, 1.0)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_a_threshold_of_the_whole_model(
    blocky: Models, triune: Run, load: Any, tmp_path: Path, method: str, threads: str
) -> None:
    weight, density, share = [0.5, 1.0, 1.5], 0.3, 0.6
    flags = ["--method", method, "--set", "semantics=paper", "--set", "out_dtype=float32", "--set", "seed=3"]
    flags += [part for i, w in enumerate(weight) for part in ("--set", f"weight.{i}={w}")]
    if method == "ties":
        flags += ["--set", f"density={density}"]
    else:
        flags += ["--set", f"trim_density={density}", "--set", f"density={share}"]
    out = tmp_path / "out"
    assert triune("merge", *blocky.flags, *flags, "--threads", threads, "--no-gate", "--quiet", out).code == 0
    merged = load(out)
    names = list(SHAPES)
    base = {n: blocky.tensors["base"][n].float() for n in names}
    deltas = {n: torch.stack([t.float() - base[n] for t in blocky.stack(n)]) for n in names}
    if method == "dare_ties":
        for n in names:
            deltas[n] = dropped(deltas[n], n, share)
    flat = ties_by_hand(torch.cat([deltas[n].reshape(3, -1) for n in names], 1), weight, density)
    parts = flat.split([math.prod(SHAPES[n]) for n in names])
    for name, part in zip(names, parts, strict=True):
        torch.testing.assert_close(merged[name], base[name] + part.reshape(SHAPES[name]), rtol=0, atol=1e-6)


def dropped(deltas: torch.Tensor, name: str, density: float) -> torch.Tensor:
    """Each expert's delta after DARE, by DARE itself with all weight on that expert."""
    dare = find("dare_linear")
    view = View(name, seed=3)
    weights = [[float(i == t) for i in range(3)] for t in range(3)]
    return torch.stack([dare(deltas, view=view, weight=w, density=density, semantics="paper") for w in weights])
