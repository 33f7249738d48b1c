"""Tied weights, data types, buffers, odd shapes, and models of an unknown family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import triune as api

if TYPE_CHECKING:
    from conftest import Run

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CONFIG = {"model_type": "none", "architectures": ["None"]}


@pytest.fixture
def merge(triune: Run, load: Any, tmp_path: Path) -> Any:
    """Merge two models by task arithmetic at weight 1/2 unless told otherwise; gives the output's tensors."""

    def call(root: Path, *flags: str, experts: tuple[str, ...] = ("a", "b"), method: str = "task_arithmetic") -> Any:
        named = [p for e in experts for p in ("--expert", str(root / e))]
        command = ("--base", str(root / "base"), *named, "--method", method, "--set", "weight=0.5", "--no-gate", *flags)
        told = triune("merge", *command, tmp_path / "out")
        return told, load(tmp_path / "out") if (tmp_path / "out").exists() else {}

    return call


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("base", [True, False], ids=["tied base", "untied base"])
@pytest.mark.parametrize("expert", [True, False], ids=["tied expert", "untied expert"])
def test_tied_weights(merge: Any, write: Any, tmp_path: Path, base: bool, expert: bool) -> None:
    each = {}
    for seed, (name, tied) in enumerate([("base", base), ("a", expert), ("b", base)]):
        tensors = {EMBEDDING: random(seed, 6, 4), "model.norm.weight": random(seed + 10, 4)}
        if not tied:
            tensors[HEAD] = random(seed + 20, 6, 4)
        each[name] = {HEAD: tensors[EMBEDDING], **tensors}
        write(tmp_path / name, tensors, **CONFIG, tie_word_embeddings=tied)
    told, merged = merge(tmp_path)
    if base and not expert:
        assert told.code == 2
        for word in ("a has lm_head.weight", "output head of its own", "save it with tied weights"):
            assert word in told.err
        assert merged == {}
        return
    assert told.code == 0, told.err
    assert set(merged) == {EMBEDDING, "model.norm.weight"} | ({HEAD} if not base else set())
    for name in merged:
        wanted = (each["a"][name] + each["b"][name]) / 2
        torch.testing.assert_close(merged[name], wanted)


def test_a_tied_head_that_is_stored_all_the_same(merge: Any, write: Any, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        embedding = random(seed, 6, 4)
        write(tmp_path / name, {EMBEDDING: embedding, HEAD: embedding.clone()}, **CONFIG, tie_word_embeddings=True)
    told, merged = merge(tmp_path)
    assert told.code == 0, told.err
    assert set(merged) == {EMBEDDING}


def test_a_constant_that_only_some_carry(merge: Any, write: Any, tmp_path: Path) -> None:
    constant = {"model.layers.0.rotary_emb.inv_freq": random(5, 3)}
    for seed, (name, more) in enumerate([("base", constant), ("a", {}), ("b", constant)]):
        write(tmp_path / name, {"w": random(seed, 3, 2), **more}, **CONFIG)
    told, merged = merge(tmp_path)
    assert told.code == 0, told.err
    torch.testing.assert_close(merged["model.layers.0.rotary_emb.inv_freq"], next(iter(constant.values())))


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("wanted", [None, *DTYPES])
@pytest.mark.parametrize("stored", DTYPES)
def test_dtypes(merge: Any, write: Any, tmp_path: Path, stored: str, wanted: str | None) -> None:
    each = {n: {"w": random(i, 5, 7).to(DTYPES[stored])} for i, n in enumerate(("base", "a", "b"))}
    each["a"]["w"] = each["a"]["w"].bfloat16()  # an expert may be stored otherwise
    for name, tensors in each.items():
        write(tmp_path / name, tensors, **CONFIG)
    told, merged = merge(tmp_path, *(("--set", f"out_dtype={wanted}") if wanted else ()))
    assert told.code == 0, told.err
    base = each["base"]["w"].float()
    result = base + 0.5 * (each["a"]["w"].float() - base) + 0.5 * (each["b"]["w"].float() - base)
    dtype = DTYPES[wanted or stored]
    assert merged["w"].dtype == dtype
    torch.testing.assert_close(merged["w"], result.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_out_dtype_comes_before_dtype(merge: Any, write: Any, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        write(tmp_path / name, {"w": random(seed, 5, 7)}, **CONFIG)
    told, merged = merge(tmp_path, "--set", "dtype=float32", "--set", "out_dtype=bfloat16")
    assert told.code == 0, told.err
    assert merged["w"].dtype == torch.bfloat16
    assert '"dtype": "bfloat16"' in (tmp_path / "out" / "config.json").read_text()


def test_numbers_too_large_for_float16(merge: Any, write: Any, tmp_path: Path) -> None:
    for name, size in (("base", 6e4), ("a", 9e4), ("b", 9e4)):
        write(tmp_path / name, {"w": torch.full((3, 2), size), "v": random(1, 2)}, **CONFIG)
    told, merged = merge(tmp_path, "--set", "out_dtype=float16", "--gate")
    assert told.code == 1
    assert "failed its checks" in told.err
    assert "1 of 2 tensors hold NaN or Inf, e.g. w" in told.err
    assert merged["w"].isinf().all()


def test_buffers_of_integers_are_copied(merge: Any, write: Any, tmp_path: Path) -> None:
    buffers = {"ids": torch.arange(600_000).reshape(3, -1), "mask": torch.tensor([True, False]), "n": torch.tensor(7)}
    for seed, name in enumerate(("base", "a", "b")):
        mine = {n: t if name == "base" else torch.zeros_like(t) for n, t in buffers.items()}
        write(tmp_path / name, {"w": random(seed, 5, 7), **mine}, **CONFIG)
    told, merged = merge(tmp_path, "--set", "dtype=bfloat16")
    assert told.code == 0, told.err
    assert all(torch.equal(merged[n], t) for n, t in buffers.items())


@pytest.mark.parametrize("method", ["ties", "linear", "della", "breadcrumbs", "tsvm", "model_stock", "dare_ties"])
def test_odd_shapes(triune: Run, load: Any, write: Any, tmp_path: Path, method: str) -> None:
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1), (2, 3, 4), (0, 5), (1, 300_000), (300_000, 1)]
    each = {
        n: {f"w{i}": random(7 * i + s, *shape) for i, shape in enumerate(shapes)}
        for s, n in enumerate(("base", "a", "b"))
    }
    for name, tensors in each.items():
        write(tmp_path / name, tensors, **CONFIG)
    # With labels, by which random masks go.
    flags = ("--base", str(tmp_path / "base"), "--expert", f"0={tmp_path / 'a'}", "--expert", f"1={tmp_path / 'b'}")
    weight = () if method == "model_stock" else ("--set", "weight=0.5")
    told = triune("merge", *flags, "--method", method, *weight, "--no-gate", tmp_path / "out")
    assert told.code == 0, told.err
    merged = load(tmp_path / "out")
    assert len(merged) == len(shapes)
    parameters = {} if method == "model_stock" else {"weight": 0.5}
    for name, got in merged.items():
        experts = [each[e][name] for e in ("a", "b")]
        wanted = api.merge_tensors(method, experts, each["base"][name], parameters=parameters, name=name)
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_an_unknown_family(merge: Any, write: Any, tmp_path: Path) -> None:
    """GPT-2's names and layouts: nothing in the engine knows a family."""
    shapes = {
        "wte.weight": (20, 8), "wpe.weight": (6, 8), "ln_f.weight": (8,), "ln_f.bias": (8,),
        "h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_attn.bias": (24,), "h.0.mlp.c_fc.weight": (8, 32),
    }  # fmt: skip
    each = {
        n: {k: random(i * 10 + j, *s) for j, (k, s) in enumerate(shapes.items())}
        for i, n in enumerate(("base", "a", "b"))
    }
    for name, tensors in each.items():
        write(tmp_path / name, tensors, model_type="gpt2")
    told, merged = merge(tmp_path, method="r_tsvm")
    assert told.code == 0, told.err
    for name, got in merged.items():
        experts = [each[e][name] for e in ("a", "b")]
        wanted = api.merge_tensors("r_tsvm", experts, each["base"][name], parameters={"weight": 0.5}, name=name)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
