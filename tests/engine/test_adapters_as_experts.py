"""LoRA adapters as experts: each method merges them as if they were full models, and some give an adapter again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from conftest import Case, Models, Run

RANDOM = ("dare_linear", "dare_ties", "della_linear", "della")
TARGETS = ("self_attn.q_proj.weight", "self_attn.v_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")


@pytest.fixture(scope="module")
def adapters(models: Models, write_adapter: Any, write: Any, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Three adapters, and beside each the full model that it stands for: `dense-helpful` and so on."""
    root = tmp_path_factory.mktemp("adapters")
    base = models.tensors["base"]
    write(root / "base", base, like=models.root / "base")
    shapes = {n: tuple(t.shape) for n, t in base.items() if n.endswith(TARGETS)}
    assert len(shapes) == 8
    tensors = {"base": base}
    for seed, name in enumerate(models.names):
        # One of them leaves a layer alone.
        own = {n: s for n, s in shapes.items() if name != "honest" or "layers.0" in n}
        deltas = write_adapter(root / name, own, seed=seed, rank=2)
        tensors[name] = {n: t + deltas[n] if n in deltas else t for n, t in base.items()}
        write(root / f"dense-{name}", tensors[name], like=models.root / "base")
    return type(models)(root, tensors)


def flags_with(adapters: Models, folders: dict[str, str]) -> tuple[str, ...]:
    experts = [p for n in adapters.names for p in ("--expert", f"{n}={adapters.root / folders.get(n, n)}")]
    return ("--base", str(adapters.root / "base"), *experts)


def merged(triune: Run, load: Any, out: Path, *flags: str) -> dict[str, torch.Tensor]:
    told = triune("merge", *flags, "--no-gate", "--quiet", out)
    assert told.code == 0, told.err
    found: dict[str, torch.Tensor] = load(out)
    return found


@pytest.mark.parametrize("full", [(), ("helpful",)], ids=["adapters", "mixed"])
def test_adapters_merge_like_the_models_they_stand_for(
    case: Case, adapters: Models, flags_of: Any, triune: Run, load: Any, tmp_path: Path, full: tuple[str, ...]
) -> None:
    flags = flags_of(case)
    as_dense = {n: f"dense-{n}" for n in adapters.names}
    one = merged(triune, load, tmp_path / "a", *flags_with(adapters, {n: as_dense[n] for n in full}), *flags)
    two = merged(triune, load, tmp_path / "b", *flags_with(adapters, as_dense), *flags)
    assert one.keys() == two.keys()
    different = 0
    for name in one:
        close = torch.isclose(one[name], two[name], rtol=0, atol=1e-5)
        different += int((~close).sum())
    # Rounding may turn a tie between two entries, or a draw's rank in its row, but nowhere else.
    allowed = 4 if case.method in (*RANDOM, "ties", "breadcrumbs", "breadcrumbs_ties") else 0
    assert different <= allowed
    assert any(not torch.equal(t, adapters.tensors["base"][n]) for n, t in one.items())


LORA = [
    ("linear", {"weight": 1.0}),
    ("rewarded_soup", {"weight": 1 / 3}),
    ("rewarded_soup", {"weight": 1 / 3, "space": "lora_delta"}),
    ("rewarded_soup", {"weight": 1 / 3, "space": "lora_factors"}),
    ("task_arithmetic", {"weight": 0.7}),
    ("model_stock", {}),
    ("tsvm", {}),
    ("r_tsvm", {"outlier_scope": "channel"}),
    ("r_tsvm", {"outlier_scope": "task"}),
]


def settings(method: str, parameters: dict[str, Any]) -> tuple[str, ...]:
    return ("--method", method, *(p for k, v in parameters.items() for p in ("--set", f"{k}={v}")))


def delta_of(folder: Path, tensor: str) -> torch.Tensor:
    """What an adapter adds, by PEFT's own rule."""
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    stem = f"base_model.model.{tensor.removesuffix('.weight')}"
    if f"{stem}.lora_A.weight" not in weights:
        return torch.zeros(())
    a, b = weights[f"{stem}.lora_A.weight"], weights[f"{stem}.lora_B.weight"]
    assert set(config["alpha_pattern"]) == set(config["rank_pattern"])
    assert config["lora_alpha"] == config["r"]
    return b @ a


@pytest.mark.parametrize(
    ("method", "parameters"), LORA, ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x))
)
def test_an_adapter_comes_out(
    adapters: Models, triune: Run, load: Any, tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    flags = settings(method, parameters)
    full = merged(triune, load, tmp_path / "full", *adapters.flags, *flags)
    told = triune("merge", *adapters.flags, *flags, "--set", "output=lora", "--no-gate", tmp_path / "lora")
    assert told.code == 0, told.err
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "merge.svg",
        "mergekit_config.yml",
        "triune.lock.json",
    ]
    changed = 0
    for name, base in adapters.tensors["base"].items():
        delta = delta_of(tmp_path / "lora", name)
        changed += bool(delta.any())
        torch.testing.assert_close(base + delta, full[name], rtol=0, atol=1e-5)
    assert changed == 8
    assert triune("verify", tmp_path / "lora", "--all").code == 0


def test_factors_averaged_one_by_one_are_another_model(
    adapters: Models, triune: Run, load: Any, tmp_path: Path
) -> None:
    found = {
        space: merged(
            triune,
            load,
            tmp_path / space,
            *adapters.flags,
            *settings("rewarded_soup", {"weight": 1 / 3, "space": space}),
        )
        for space in ("full", "lora_delta", "lora_factors")
    }
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(found["full"][name], found["lora_delta"][name], rtol=0, atol=1e-6)
    assert (found["full"][name] - found["lora_factors"][name]).abs().max() > 1e-4


def test_factors_of_full_models_are_refused(models: Models, triune: Run, tmp_path: Path) -> None:
    flags = settings("rewarded_soup", {"weight": 1 / 3, "space": "lora_factors"})
    told = triune("merge", *models.flags, *flags, tmp_path / "out")
    assert told.code == 2
    assert "lora_factors" in told.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("ties", {}, ("ties", "full rank")),
        ("dare_linear", {"density": 0.5}, ("dare_linear", "full rank")),
        ("breadcrumbs", {}, ("breadcrumbs", "full rank")),
        ("model_stock", {"filter_wise": "true"}, ("filter_wise",)),
        ("linear", {"weight": 1.0, "normalize": "false"}, ("normalize",)),
        ("r_tsvm", {}, ("outlier_scope: entry", "channel")),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_an_adapter_cannot_come_out(
    adapters: Models, triune: Run, tmp_path: Path, method: str, parameters: dict[str, Any], words: tuple[str, ...]
) -> None:
    told = triune("merge", *adapters.flags, *settings(method, parameters), "--set", "output=lora", tmp_path / "out")
    assert told.code == 2
    for word in ("output: lora", "output: full", *words):
        assert word in told.err
    assert not (tmp_path / "out").exists()


def test_no_adapter_from_a_full_model(adapters: Models, triune: Run, tmp_path: Path) -> None:
    flags = flags_with(adapters, {"honest": "dense-honest"})
    told = triune("merge", *flags, *settings("tsvm", {}), "--set", "output=lora", tmp_path / "out")
    assert told.code == 2
    for word in ("every expert to be an adapter", "dense-honest", "output: full"):
        assert word in told.err
    assert not (tmp_path / "out").exists()


def test_nothing_to_write(adapters: Models, triune: Run, tmp_path: Path) -> None:
    flags = settings("task_arithmetic", {"weight": 0.0})
    told = triune("merge", *adapters.flags, *flags, "--set", "output=lora", tmp_path / "out")
    assert told.code == 2
    assert "zero everywhere" in told.err
    assert not (tmp_path / "out").exists()


def test_base_plus_adapter_is_an_expert(
    adapters: Models, triune: Run, load: Any, write_adapter: Any, tmp_path: Path
) -> None:
    """Also where the adapter says that it was trained on a model of another name."""
    name = "model.layers.0.mlp.up_proj.weight"
    deltas = write_adapter(tmp_path / "a", {name: (48, 32)}, seed=9, base="org/elsewhere")
    expert = f"{adapters.root / 'base'}+{tmp_path / 'a'}"
    flags = ("--base", str(adapters.root / "base"), "--expert", expert, "--method", "task_arithmetic")
    got = merged(triune, load, tmp_path / "out", *flags)
    torch.testing.assert_close(got[name], adapters.tensors["base"][name] + deltas[name], rtol=0, atol=1e-6)
    assert torch.equal(got["model.norm.weight"], adapters.tensors["base"]["model.norm.weight"])
