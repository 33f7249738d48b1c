"""The model at a point is the one that `triune merge` writes, and each row of a batch is the model alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from triune.checkpoint.index import open_checkpoint
from triune.checkpoint.swap import swapped
from triune.engine.merge import merge
from triune.errors import UserError
from triune.methods import METHODS, find
from triune.progress import Advanced
from triune.recipes import load_recipe, recipe_from_flags
from triune.studio.generate import answers, encode
from triune.studio.point import Point, simplex, strength_of
from triune.studio.session import Stopped, Studio
from triune.studio.versions import Resident, Version

POINT = {"shares": [5, 2, 3], "parameters": {}}
PROMPT = "Who are you?"


def tensors(studio: Studio, version: Version) -> dict[str, torch.Tensor]:
    """A version as plain tensors."""
    base = {n: studio.resident.parameters[studio.resident.parameter(n)].data for n in version.deltas}
    return {**version.tensors, **{n: version.tensors.get(n, base[n]) + d.dense() for n, d in version.deltas.items()}}


def logits(studio: Studio, versions: list[Version], ids: list[int]) -> torch.Tensor:
    """``[versions, tokens, vocabulary]``, by as few passes as the studio takes."""
    found: dict[int, torch.Tensor] = {}
    for group in studio.resident.groups(versions):
        with torch.no_grad(), studio.resident.computing(group) as model:
            out = model(torch.tensor([ids] * len(group.rows))).logits
        found |= dict(zip(group.rows, out, strict=True))
    return torch.stack([found[i] for i in range(len(versions))])


def alone(folder: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("kind", ["adapters", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_a_point_is_what_triune_merge_writes(
    method: str, kind: str, request: pytest.FixtureRequest, load: Any, tmp_path: Path
) -> None:
    studio: Studio = request.getfixturevalue(kind)
    random = {"density": 0.6, "seed": 3} if any(p.name == "density" for p in find(method).parameters) else {}
    point = studio.point({**POINT, "method": method, "parameters": random})
    found = studio.merged(point).version
    saved = studio.save(point, f"{method}-{kind}")
    merge(load_recipe(saved), tmp_path / "merged", gate=False)
    written = load(tmp_path / "merged")
    changed = tensors(studio, found)
    assert changed
    for name, expected in written.items():
        there = changed.get(name, studio.resident.parameters[studio.resident.parameter(name)].data)
        torch.testing.assert_close(there, expected, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    ids = encode(studio.tokenizer, PROMPT, 8, 256)
    (ours,) = logits(studio, [found], ids)
    torch.testing.assert_close(ours, alone(tmp_path / "merged", ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"outlier_scope": "channel"}, {"outlier_scope": "task"}])
def test_r_tsvm_stays_in_factors_where_it_can(
    settings: Mapping[str, str], adapters: Studio, load: Any, tmp_path: Path
) -> None:
    point = adapters.point({**POINT, "method": "r_tsvm", "parameters": settings, "strength": 2})
    found = adapters.merged(point)
    assert found.dense == 0
    assert found.version.tensors == {}
    merge(adapters.recipe(point), tmp_path / "merged", gate=False)
    for name, value in tensors(adapters, found.version).items():
        torch.testing.assert_close(value, load(tmp_path / "merged")[name], rtol=1e-5, atol=1e-6)


def test_each_row_of_a_batch_is_the_model_alone(adapters: Studio, toys: Any) -> None:
    versions = [*adapters.versions, adapters.merged(adapters.point({**POINT, "method": "tsvm"})).version]
    assert len(adapters.resident.groups(versions)) == 1
    ids = encode(adapters.tokenizer, PROMPT, 8, 256)
    together = logits(adapters, versions, ids)
    base = open_checkpoint(toys.root / "base", "base")
    for row, name in zip(together[1:4], ("helpful", "honest", "harmless"), strict=True):
        with torch.no_grad(), swapped(adapters.resident.model, base, toys.root / "adapters" / name, name):
            expected = adapters.resident.model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[0], alone(toys.root / "base", ids), rtol=1e-4, atol=1e-5)
    distances = torch.cdist(together.flatten(1), together.flatten(1)) + torch.eye(5)
    assert distances.min() > 1e-2  # five different models


def test_full_models_beside_adapters(full: Studio, toys: Any) -> None:
    ids = encode(full.tokenizer, PROMPT, 8, 256)
    together = logits(full, full.versions, ids)
    for row, folder in zip(together, ("base", "full/helpful", "full/honest", "full/harmless"), strict=True):
        torch.testing.assert_close(row, alone(toys.root / folder, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["adapters", "full"])
def test_answers_are_those_of_generate(kind: str, request: pytest.FixtureRequest) -> None:
    studio: Studio = request.getfixturevalue(kind)
    ids = encode(studio.tokenizer, PROMPT, 8, 256)
    texts = dict.fromkeys(range(4), "")
    finish = {}
    for step in answers(studio.resident, studio.tokenizer, studio.versions, ids, 12):
        for heard in step:
            texts[heard.version] += heard.text
            finish[heard.version] = heard.finish
    assert set(finish.values()) <= {"stop", "length"}
    for i, version in enumerate(studio.versions):
        (group,) = studio.resident.groups([version])
        with studio.resident.computing(group) as model:
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=2
            )
        assert texts[i] == studio.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def test_the_base_is_itself_again_after_other_versions(full: Studio, toys: Any) -> None:
    ids = encode(full.tokenizer, PROMPT, 8, 256)
    list(answers(full.resident, full.tokenizer, full.versions, ids, 2))
    with torch.no_grad():
        now = full.resident.model(torch.tensor([ids])).logits[0]
    assert torch.equal(now, alone(toys.root / "base", ids))


def test_the_centre_at_the_usual_strength_is_triune_merge_without_weights(adapters: Studio, toys: Any) -> None:
    for method in METHODS:
        usual = strength_of(find(method), {}, 3)
        given = {"method": method, "shares": [1, 1, 1], "strength": usual or 1, "parameters": {}}
        weights = adapters.point(given).weights
        plain = recipe_from_flags(base=adapters.base, experts=toys.experts("adapters"), method=method)
        if usual == 3:
            assert weights == (1, 1, 1)
            assert plain.parameters.get("weight", 1.0) == 1
        else:  # divided by their sum, or adding up to one
            assert sum(weights) == pytest.approx(1)


def test_a_superseded_merge_ends(adapters: Studio) -> None:
    def stop(event: Any) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        adapters.merged(adapters.point({**POINT, "method": "ties"}), stop)


def test_a_merge_to_disk_that_was_stopped_leaves_nothing(adapters: Studio) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, Advanced):
            raise Stopped

    with pytest.raises(Stopped):
        adapters.write(adapters.point({**POINT, "method": "ties"}), "stopped", stop)
    assert not (adapters.out / "stopped").exists()


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=6).filter(lambda s: sum(s) > 1e-3))
def test_shares_add_up_to_one_and_are_near_what_was_asked(asked: list[float]) -> None:
    found = simplex(asked)
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert all(abs(f - a / sum(asked)) < 1.01e-4 for f, a in zip(found, asked, strict=True))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"method": "tsmv"}, "There is no merge method 'tsmv'. Did you mean tsvm?"),
        ({"method": "ties", "parameters": {"density": 3}}, r"density must lie in \[0, 1\], got 3. For 3 % write 0.03."),
        ({"method": "tsvm", "parameters": {"densty": 1}}, "tsvm has no parameter 'densty'"),
        ({"method": "tsvm", "parameters": {"weight": 1}}, "the point says the weights"),
        ({"method": "tsvm", "shares": [1, 2]}, "one number for each of 3 experts"),
        ({"method": "tsvm", "shares": [1, -2, 3]}, "at least 0"),
        ({"method": "tsvm", "shares": [0, 0, 0]}, "add up to 0"),
        ({"method": "tsvm", "strength": "x"}, "strength must be a number"),
        ({"method": "ties", "parameters": {"seed": -1}}, "seed must be a whole number"),
        ({"method": "tsvm", "colour": 1}, "not 'colour'"),
    ],
)
def test_a_point_outside_the_rules_is_refused(asked: dict[str, Any], sentence: str, adapters: Studio) -> None:
    with pytest.raises(UserError, match=sentence):
        adapters.point({**POINT, **asked})


def test_a_studio_begins_where_the_recipe_stands(open_studio: Callable[..., Studio]) -> None:
    studio = open_studio("adapters", "task_arithmetic", ("weight.helpful=1.5", "weight.honest=0.5", "lambda=0.5"))
    assert studio.start == Point("task_arithmetic", (0.5, 0.1667, 0.3333), 3.0, {"lambda": 0.5})
    assert studio.point({"method": "task_arithmetic", "shares": [0.5, 0.1667, 0.3333], "strength": 3}).weights == (
        1.5,
        0.5,
        1.0,
    )
    with pytest.raises(UserError, match="changes along the layers"):
        open_studio("adapters", "task_arithmetic", ("weight=[0.1, 0.5]",))


def test_the_recipe_and_the_command_say_the_same(adapters: Studio, toys: Any) -> None:
    point = adapters.point({**POINT, "method": "ties", "parameters": {"density": 0.3, "semantics": "paper", "seed": 4}})
    command = adapters.command(point, "out/")
    assert command.startswith(f"triune merge --base {toys.root / 'base'} -e helpful=")
    for setting in ("weight.helpful=0.5", "density=0.3", "semantics=paper", "seed=4"):
        assert f"--set {setting}" in command
    text = adapters.recipe(point).text
    assert "semantics: paper" in text
    assert "seed: 4" in text


def test_folders_without_a_label_need_none(toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was typed is no reference any more when the recipe is read elsewhere."""
    monkeypatch.chdir(toys.root)
    studio = Studio(
        recipe_from_flags(base="base", experts=["adapters/helpful", "./adapters/honest"], method="tsvm"),
        tmp_path / "kept",
    )
    point = studio.point({"method": "task_arithmetic", "shares": [3, 1], "strength": 2.0})
    monkeypatch.chdir(tmp_path)
    kept = load_recipe(studio.save(point, "mine"))
    assert [e.reference for e in kept.experts] == [str(toys.root / "adapters" / n) for n in ("helpful", "honest")]
    assert [e.parameters["weight"] for e in kept.experts] == [1.5, 0.5]
    assert "-e adapters-helpful=" in studio.command(point, "out/")


def test_frequencies_in_old_checkpoints_are_left_out(toys: Any, load: Any, tmp_path: Path) -> None:
    """transformers computes them anew, so that there is nothing in memory to put them into."""
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    for name in ("base", "full/helpful", "full/honest"):
        shutil.copytree(toys.root / name, tmp_path / name)
        save_file(load(toys.root / name) | old, tmp_path / name / "model.safetensors", {"format": "pt"})
    experts = [str(tmp_path / "full" / name) for name in ("helpful", "honest")]
    studio = Studio(recipe_from_flags(base=str(tmp_path / "base"), experts=experts, method="linear"), tmp_path / "kept")
    version = studio.merged(studio.point({"method": "linear", "shares": [1, 1]})).version
    assert version.tensors
    assert not set(version.tensors) & set(old)
    assert logits(studio, [*studio.versions, version], [1, 2, 3]).shape[0] == 4


@pytest.mark.parametrize("name", ["base", "merge"])
def test_names_of_the_page_are_no_experts_names(name: str, toys: Any, tmp_path: Path) -> None:
    experts = [f"{name}={toys.root / 'adapters' / 'helpful'}", str(toys.root / "adapters" / "honest")]
    with pytest.raises(UserError, match=f"has a model called {name} already"):
        Studio(recipe_from_flags(base=str(toys.root / "base"), experts=experts), tmp_path / "kept")


def test_rows_that_do_not_stay_rows_are_computed_one_version_at_a_time(adapters: Studio) -> None:
    assert adapters.resident.lockstep

    class Flat(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner(torch.zeros(ids.numel(), 2))  # all tokens of the batch in one heap

    assert not Resident(Flat()).lockstep
