"""``triune diagnose``, through its door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import triune as api
from triune.diagnostics.advice import advise
from triune.diagnostics.diagnose import diagnose
from triune.diagnostics.records import read_diagnosis
from triune.errors import Interrupted
from triune.progress import Advanced, Event

if TYPE_CHECKING:
    from conftest import Models, Run


def recipe_of(models: Models, method: str = "r_tsvm", **settings: Any) -> api.Recipe:
    return api.recipe_from_flags(
        base=str(models.root / "base"),
        experts=[f"{n}={models.root / n}" for n in models.names],
        method=method,
        settings=[f"{k}={v}" for k, v in settings.items()],
    )


def test_the_whole_thing(models: Models, triune: Run, tmp_path: Path) -> None:
    """Numbers of one tensor, computed again from the models' tensors."""
    out = tmp_path / "new" / "diagnosis.jsonl"
    told = triune("diagnose", *models.flags, "--output", out)
    assert told.code == 0, told.err
    for word in (*models.names, "opposite signs", "kept, flipped, dropped", "r_tsvm", str(out)):
        assert word in told.out, told.out
    found = read_diagnosis(out)
    name = "model.layers.1.mlp.up_proj.weight"
    (tensor,) = (t for t in found.tensors if t.name == name)
    base = models.tensors["base"][name].float()
    deltas = [t.float() - base for t in models.stack(name)]
    assert tensor.base_norm == pytest.approx(float(base.norm()), rel=1e-5)
    assert [e.norm for e in tensor.experts] == pytest.approx([float(d.norm()) for d in deltas], rel=1e-5)
    (pair, *_) = tensor.pairs
    assert pair.cosine == pytest.approx(
        float(torch.cosine_similarity(*(d.flatten() for d in deltas[:2]), dim=0)), abs=1e-5
    )
    assert (tensor.layer, tensor.projection) == (1, "up_proj")
    assert {e.ranks["tsvm"] for e in tensor.experts} == {min(base.shape) // 3}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("tsvm", {}),
        ("r_tsvm", {}),
        ("r_tsvm", {"outlier_scope": "task", "outlier_sigma": 1.0}),
        ("task_arithmetic", {}),
        ("ties", {"density": 0.3}),
    ],
)
def test_effects_are_those_of_the_method(method: str, more: dict[str, Any], models: Models) -> None:
    """Small tensors are their own sample: the effect is what the method itself does."""
    settings = {"weight": 1.0, **more}
    found = diagnose(recipe_of(models, method, **settings))
    name = "model.layers.0.self_attn.q_proj.weight"
    (tensor,) = (t for t in found.tensors if t.name == name)
    base = models.tensors["base"][name].float()
    deltas = torch.stack([t.float() - base for t in models.stack(name)])
    merged = api.merge_tensors(method, list(deltas), torch.zeros_like(base), parameters=settings, name=name)
    for expert, effect in zip(deltas, tensor.effects[method], strict=True):
        assert effect.kept == pytest.approx(float((merged * expert).sum() / expert.square().sum()), abs=1e-4)
        assert effect.dropped == pytest.approx(
            float(((merged == 0) & (expert != 0)).sum() / (expert != 0).sum()), abs=1e-6
        )


def test_threads_do_not_matter(models: Models) -> None:
    one, two = (diagnose(recipe_of(models), threads=n) for n in (1, 3))
    assert one == two


def test_a_stopped_diagnosis_continues(models: Models, tmp_path: Path) -> None:
    out, events = tmp_path / "d.jsonl", list[Event]()

    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    whole = diagnose(recipe_of(models), tmp_path / "whole.jsonl")
    with pytest.raises(Interrupted):
        diagnose(recipe_of(models), out, threads=1, listener=stop)
    assert not out.exists()
    partial = tmp_path / "d.jsonl.partial"
    kept = partial.read_text()
    finished = kept.count("\n") - 1
    assert finished in (1, 2)  # the one in hand is finished, too
    partial.write_text(kept + '{"index": 3, "na')  # killed in the middle of a line
    assert diagnose(recipe_of(models), out, listener=events.append) == whole
    assert sum(isinstance(e, Advanced) for e in events) == len(whole.tensors) - finished
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_advice(models: Models, write: Any, tmp_path: Path) -> None:
    """An expert, its copy, and its opposite four times as large."""
    base = models.tensors["base"]
    delta = {n: models.tensors["helpful"][n].float() - t.float() for n, t in base.items()}
    for name, factor in (("one", 1.0), ("same", 1.0), ("against", -4.0)):
        write(tmp_path / name, {n: t.float() + factor * delta[n] for n, t in base.items()}, models.root / "base")
    write(tmp_path / "base", {n: t.float() for n, t in base.items()}, models.root / "base")
    experts = [f"{n}={tmp_path / n}" for n in ("one", "same", "against")]
    recipe = api.recipe_from_flags(base=str(tmp_path / "base"), experts=experts, method="linear", settings=[])
    rules = [a.rule for a in advise(diagnose(recipe, effects=[]))]
    assert rules.count("sign conflict") == 2
    assert rules.count("near duplicates") == 1
    assert rules.count("unequal experts") == 1


def test_advice_of_several_pairs_is_one_sentence(models: Models, write_adapter: Any, tmp_path: Path) -> None:
    """Adapters with one A and a B each: rows are shared, columns are not."""
    tensor = "model.layers.0.mlp.up_proj.weight"
    for seed, name in enumerate(models.names):
        write_adapter(tmp_path / name, {tensor: (48, 32)}, seed=seed)
        factors = load_file(tmp_path / name / "adapter_model.safetensors")
        a = next(n for n in factors if "lora_A" in n)
        factors[a] = torch.eye(2, 32)
        save_file(factors, tmp_path / name / "adapter_model.safetensors", metadata={"format": "pt"})
    experts = [f"{n}={tmp_path / n}" for n in models.names]
    recipe = api.recipe_from_flags(base=str(models.root / "base"), experts=experts, method="tsvm")
    (advice,) = [a for a in advise(diagnose(recipe, effects=[])) if a.rule == "shared space"]
    assert advice.sentence.startswith(
        "helpful and honest; helpful and harmless; honest and harmless share their right singular space (overlap 1.00) "
        "but not the left one (0."
    )


def test_json(models: Models, triune: Run) -> None:
    told = triune("diagnose", *models.flags, "--effects", "ties,tsvm", "--json")
    assert json.loads(told.out)["header"]["effects"] == ["ties", "tsvm"]


def test_mistakes(models: Models, triune: Run, tmp_path: Path) -> None:
    own, other = tmp_path / "own.jsonl", tmp_path / "other.jsonl"
    own.write_text("{}")
    diagnose(recipe_of(models), other, effects=[])
    flags = ("diagnose", *models.flags)
    for arguments, sentence in (
        ((*flags, "--effects", "tis"), "tis"),
        ((*flags, "-o", tmp_path), "is a folder"),
        ((*flags, "-o", own), "is not a diagnosis"),
        ((*flags, "-o", other), "holds another diagnosis"),
        ((*flags, "--max-memory", "1kB"), "--max-memory 1 kB: diagnosing"),
        (("diagnose",), "Nothing to merge"),
        (("diagnose", "-m", "linear", *models.flags[2:]), "no base"),
    ):
        told = triune(*arguments)
        assert told.code == 2, (arguments, told)
        assert told.err.startswith("triune: ")
        assert sentence in told.err
        assert told.err.count("\n") == 1
    assert own.read_text() == "{}"
    assert not list(tmp_path.glob("*.partial"))
