from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.output.gate import Check, TensorNorms, check_model, check_norms

from .conftest import CHATML, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from triune.output.beside import Parent

    Make = Callable[..., Parent]
    Weights = Callable[..., None]

GIGABYTE = 1 << 30


def tensor(name: str = "model.layers.3.mlp.up_proj.weight", **changes: object) -> TensorNorms:
    given = {"name": name, "merged": 10.0, "base": 10.0, "deltas": (1.0, 1.0, 1.0), "merged_delta": 1.0, **changes}
    return TensorNorms(**given)  # type: ignore[arg-type]


def passed(*norms: TensorNorms) -> dict[str, bool | None]:
    return {check.name: check.passed for check in check_norms(norms)}


FINE = {"finite": True, "tensor norms": True, "layer norms": True, "layer changes": True}


def test_an_ordinary_merge_passes() -> None:
    assert passed(tensor(), tensor("lm_head.weight")) == FINE
    assert passed() == FINE


def test_nan_is_found_and_named() -> None:
    checks = check_norms([tensor(merged=math.nan, merged_delta=math.nan), tensor("a"), tensor("b", merged=math.inf)])
    assert checks[0] == Check(
        "finite", False, "2", "2 of 3 tensors hold NaN or Inf, e.g. model.layers.3.mlp.up_proj.weight; none may."
    )
    assert all(check.passed for check in checks[1:])


def test_a_lost_or_exploded_tensor_is_found() -> None:
    """One lost norm vector does not move its layer's norm, so it is judged alone."""
    small = tensor("model.layers.3.norm.weight", base=0.5, deltas=(0.01,), merged=0.0, merged_delta=0.5)
    assert passed(tensor(), small) == {**FINE, "tensor norms": False}
    assert passed(tensor(), tensor("bias", base=0.0, deltas=(0.1,), merged=0.1, merged_delta=0.1)) == FINE
    assert (
        passed(tensor(), tensor("bias", base=0.0, deltas=(0.1,), merged=2.0, merged_delta=2.0))["tensor norms"] is False
    )


def test_a_layer_that_doubles_is_found() -> None:
    blown = tensor(merged=22.0, deltas=(15.0, 15.0), merged_delta=20.0)
    checks = {c.name: c for c in check_norms([blown, tensor("lm_head.weight")])}
    assert not checks["layer norms"].passed
    assert checks["layer norms"].sentence == (
        "At worst, the norm of model.layers.3 is 2.2 times the base's; it must stay between 0.5 and 2."
    )


def test_a_change_beyond_all_experts_is_found() -> None:
    """Three experts move by 0.2 each, together 0.6. A change of 3 is five times that and 30 % of the base."""
    checks = check_norms([tensor(deltas=(0.2, 0.2, 0.2), merged_delta=3.0, merged=10.4)])
    assert [c.passed for c in checks] == [True, True, True, False]
    assert checks[3].sentence == (
        "At worst, the change of model.layers.3 is 5 times those of all experts together; the limit is 4."
    )
    # The same factor on a change too small to matter: below 5 % of the base.
    assert passed(tensor(deltas=(0.02, 0.02, 0.02), merged_delta=0.3)) == FINE


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6), st.floats(0.1, 1.0), st.floats(0.0, 1.0))
def test_sums_averages_and_rescaled_drops_pass(deltas: list[float], density: float, weight: float) -> None:
    """DARE at density p multiplies the squared norm by 1 / p; every expert at most at full weight."""
    change = weight * sum(deltas) / math.sqrt(density)
    norm = tensor(base=20.0, merged=math.hypot(20.0, change), deltas=tuple(deltas), merged_delta=change)
    assert passed(norm) == FINE


def test_every_method_passes() -> None:
    """On random matrices with experts at 5 % of the base, three times what tuning does."""
    import torch

    from triune.methods import METHODS, find

    torch.manual_seed(0)
    base = torch.randn(48, 32)
    deltas = 0.05 * torch.randn(3, 48, 32)
    for name in METHODS:
        try:
            method = find(name)
        except ModuleNotFoundError:
            continue
        density = {p.name: 0.2 for p in method.parameters if p.name == "density"}
        # Rewarded soup takes weights that add up to 1.
        full = 1 / 3 if name == "rewarded_soup" else 1.0
        weight = {p.name: full for p in method.parameters if p.required and p.name not in density}
        stack = deltas if method.takes == "deltas" else base + deltas
        merged = method(stack, **{**weight, **density})
        out = base + merged if method.takes == "deltas" else merged
        each = tuple(float(d.norm()) for d in deltas)
        norm = TensorNorms("w", float(out.norm()), float(base.norm()), each, float((out - base).norm()))
        assert passed(norm) == FINE, name


# The model itself


def outcome(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


def test_a_model_against_itself(make: Make, weights: Weights) -> None:
    base = make("base", template=CHATML)
    weights(base.folder)
    checks = check_model(base.folder, base.folder, memory_limit=GIGABYTE)
    assert outcome(checks)["loads"] is True
    assert outcome(checks)["perplexity"] is True
    assert "the ratio 1 must be at most 1.5." in checks[1].sentence
    # A random model may well repeat itself; its base does the same.
    assert outcome(checks)["repetition"] is True


def test_a_broken_model_is_caught(make: Make, weights: Weights) -> None:
    from safetensors.torch import load_file, save_file

    base, out = make("base"), make("out")
    weights(base.folder)
    state = load_file(base.folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file({**state, name: 300 * state[name]}, out.folder / "model.safetensors", metadata={"format": "pt"})
    assert outcome(check_model(out.folder, base.folder, memory_limit=GIGABYTE))["perplexity"] is False


def test_missing_weights_are_caught(make: Make, weights: Weights) -> None:
    from safetensors.torch import load_file, save_file

    base, out = make("base"), make("out")
    weights(base.folder)
    state = load_file(base.folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, out.folder / "model.safetensors", metadata={"format": "pt"})
    loads = check_model(out.folder, base.folder, memory_limit=GIGABYTE)[0]
    assert loads.sentence == (
        "transformers loads the result and finds 1 weights missing, e.g. model.norm.weight; none may be."
    )
    assert loads.passed is False


def test_what_cannot_be_loaded_fails_with_the_reason(make: Make, weights: Weights) -> None:
    base, out = make("base"), make("out", config={"model_type": "no-such-model"})
    weights(base.folder)
    (out.folder / "model.safetensors").write_bytes((base.folder / "model.safetensors").read_bytes())
    (check,) = check_model(out.folder, base.folder, memory_limit=GIGABYTE)
    assert check.passed is False
    assert "no-such-model" in check.sentence


def test_a_template_that_fails_is_caught(make: Make, weights: Weights) -> None:
    base = make("base", template="{{ raise_exception('only assistants') }}")
    weights(base.folder)
    checks = check_model(base.folder, base.folder, memory_limit=GIGABYTE)
    assert checks[-1] == Check(
        "reads", False, "TemplateError", "The model or its chat template fails on plain text: only assistants"
    )


def test_not_run_without_memory_tokenizer_or_with_custom_code(make: Make, weights: Weights) -> None:
    base, bare = make("base"), make("bare", words=None)
    weights(base.folder)
    weights(bare.folder)
    small = check_model(base.folder, base.folder, memory_limit=1000)
    assert {c.passed for c in small} == {None}
    assert "of memory, which is above the limit (--max-memory)." in small[0].sentence
    assert "has no tokenizer" in check_model(bare.folder, base.folder, memory_limit=GIGABYTE)[0].sentence
    save(
        base.folder / "config.json", {**json.loads((base.folder / "config.json").read_text()), "auto_map": {"A": "b.C"}}
    )
    assert "its own code" in check_model(base.folder, base.folder, memory_limit=GIGABYTE)[0].sentence


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_judged_on_its_base(make: Make, weights: Weights, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = make("base")
    weights(base.folder)
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    checks = check_model(tmp_path / "lora", base.folder, memory_limit=GIGABYTE)
    assert outcome(checks) == {"loads": True, "perplexity": True, "repetition": True}
    assert "the ratio 1 must" in checks[1].sentence
