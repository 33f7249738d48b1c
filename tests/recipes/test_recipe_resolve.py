"""From settings to values for one tensor."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import RecipeError
from triune.methods import METHODS, find
from triune.recipes import (
    Expert,
    Recipe,
    count_layers,
    evaluate,
    layer_position,
    parse_recipe,
    recipe_from_flags,
    resolve,
)

NAMES = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"] + [
    f"model.layers.{i}.{part}.weight" for i in range(7) for part in ("mlp.up_proj", "self_attn.q_proj")
]


# ---- where a tensor stands


@pytest.mark.parametrize(
    ("name", "layers", "position"),
    [
        ("model.layers.0.mlp.up_proj.weight", 5, 0.0),
        ("model.layers.1.mlp.up_proj.weight", 5, 0.25),
        ("model.layers.4.mlp.up_proj.weight", 5, 1.0),
        ("model.layers.0.mlp.up_proj.weight", 1, 1.0),
        ("transformer.h.1.attn.weight", 3, 0.5),
        ("h.1.attn.weight", 3, 0.5),
        ("decoder.block.1.layer.0.weight", 3, 0.5),
        ("blocks.2", 3, 1.0),
        ("encoder.layer.1.experts.7.w", 3, 0.5),
        ("model.embed_tokens.weight", 5, 0.0),
        ("model.norm.weight", 5, 0.0),
        ("lm_head.weight", 5, 0.0),
        ("model.mylayers.3.weight", 5, 0.0),
        ("model.layers.3x.weight", 5, 0.0),
        ("lm_head.weight", 1, 0.0),
    ],
)
def test_position(name, layers, position):
    assert layer_position(name, layers) == position


def test_counting_layers():
    assert count_layers(NAMES) == 7
    assert count_layers(["lm_head.weight"]) == count_layers([]) == 0


# ---- one setting, against the rule stated once more


def by_the_rule(setting, tensor, t):
    """mergekit 0.1.5's rule, from its description."""
    if type(setting) is dict:
        return by_the_rule([setting], tensor, t)
    if type(setting) is not list:
        return setting
    if len(setting) == 0:
        return None
    if type(setting[0]) is dict:
        for entry in setting:
            pattern = entry.get("filter") or "*"
            if pattern == "*" or tensor.find(pattern) >= 0:
                return by_the_rule(entry["value"], tensor, t)
        return None
    if type(setting[0]) in (bool, str):
        return setting[int(t * (len(setting) - 1))]
    scaled = t * (len(setting) - 1)
    i0 = int(scaled)
    i1 = min(len(setting) - 1, i0 + 1)
    return setting[i0] * (1 - (scaled - i0)) + setting[i1] * (scaled - i0)


numbers = st.floats(-10, 10) | st.integers(-5, 5)
plain = numbers | st.lists(numbers, max_size=5)
switches = st.booleans() | st.lists(st.booleans(), min_size=1, max_size=5) | st.lists(st.text(max_size=2), min_size=1)
entries = st.fixed_dictionaries(
    {"value": plain | switches}, optional={"filter": st.sampled_from(["mlp", "norm", "*", "7"])}
)


@given(plain | switches | entries | st.lists(entries, max_size=3), st.sampled_from(NAMES), st.integers(1, 9))
@settings(derandomize=True, max_examples=400, deadline=None)
def test_evaluate_follows_the_rule(setting, tensor, layers):
    t = layer_position(tensor, layers)
    assert evaluate(setting, tensor, t) == by_the_rule(setting, tensor, t)


@given(st.lists(numbers, min_size=1, max_size=6), st.floats(0, 1))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_a_gradient_meets_its_ends_and_stays_between_them(values, t):
    assert evaluate(values, "", 0.0) == values[0]
    assert evaluate(values, "", 1.0) == values[-1]
    assert min(values) - 1e-12 <= evaluate(values, "", t) <= max(values) + 1e-12


def test_a_gradient_by_hand():
    """Five layers, three values: layers 0, 2, 4 meet them, 1 and 3 lie halfway."""
    found = [evaluate((0.2, 0.5, 0.1), "", layer_position(f"model.layers.{i}.w", 5)) for i in range(5)]
    assert found == pytest.approx([0.2, 0.35, 0.5, 0.3, 0.1], abs=1e-15)


def test_switches_do_not_blend():
    assert [evaluate([True, False, True], "", t) for t in (0, 0.49, 0.5, 0.99, 1)] == [True, True, False, False, True]


# ---- a recipe and a tensor


def recipe(parameters="{}", first="{weight: 1}", method="ties", top=""):
    text = f"models:\n- model: a\n  parameters: {first}\n- model: b\nbase_model: base\nmerge_method: {method}\n"
    return parse_recipe(f"{text}parameters: {parameters}\n{top}", origin="recipe.yml")


def resolved(r, tensor="model.layers.3.mlp.up_proj.weight"):
    return resolve(r, find(r.method), tensor, num_layers=7)


def test_the_experts_own_setting_comes_before_the_recipes():
    values = resolved(recipe("{weight: [0, 1], normalize: false}"))
    assert values == {"weight": (1.0, 0.5), "normalize": False}


def test_where_no_filter_fits_the_next_source_is_asked():
    own = "{weight: [{filter: mlp, value: 0.1}], density: [{filter: mlp, value: 0.2}]}"
    r = recipe("{weight: 3}", own)
    assert resolved(r) == {"weight": (0.1, 3.0), "density": (0.2, 1.0)}
    assert resolved(r, "model.layers.3.self_attn.q_proj.weight") == {"weight": (3.0, 3.0)}


def test_the_first_filter_that_fits_wins_and_may_hold_a_gradient():
    r = recipe("{weight: 1, density: [{filter: mlp, value: [0, 1]}, {filter: up_proj, value: 0.9}, {value: 0.3}]}")
    assert resolved(r)["density"] == (0.5, 0.5)
    assert resolved(r, "lm_head.weight")["density"] == (0.3, 0.3)


def test_whose_semantics():
    assert "semantics" not in resolved(recipe("{weight: 1}"))
    assert resolved(recipe("{weight: 1}", top="semantics: paper"))["semantics"] == "paper"
    assert "semantics" not in resolved(recipe("{weight: 1}", method="linear", top="semantics: paper"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_binds_what_resolve_gives(method):
    spec = find(method)
    r = recipe_from_flags(base="base", experts=["a", "b", "c"], method=method, settings=["semantics=paper"])
    bound = spec.bind(resolved(r), 3)
    assert len(bound) == len(spec.parameters)


def refusal(r, tensor="model.layers.3.mlp.up_proj.weight"):
    with pytest.raises(RecipeError) as caught:
        resolved(r, tensor)
    return str(caught.value)


def test_no_filter_fits_and_the_method_needs_a_value():
    r = recipe("{weight: [{filter: mlp, value: 1}]}")
    assert refusal(r, "lm_head.weight") == (
        "ties needs weight (recipe.yml:4, models[1] b, parameters.weight, for lm_head.weight). Give it to every expert "
        "under its parameters:, or to all under parameters: at the top level."
    )


def test_weights_that_cancel():
    """-1 and a gradient from 0 to 2 add up to zero in the middle layer only."""
    r = recipe("{weight: [0, 2]}", "{weight: -1}", method="linear")
    assert resolved(r, "model.layers.2.mlp.up_proj.weight")["weight"] == pytest.approx((-1, 2 / 3))
    message = refusal(r)
    assert message.startswith("recipe.yml, for model.layers.3.mlp.up_proj.weight: ")
    assert "normalize: false" in message
    off = recipe("{weight: [0, 2], normalize: false}", "{weight: -1}", method="linear")
    assert resolved(off)["weight"] == (-1.0, 1.0)


def test_a_soup_off_the_simplex():
    assert re.match(
        r"recipe.yml, for model\.layers\.3\S*: .*add up to 1", refusal(recipe("{weight: 1}", method="rewarded_soup"))
    )


def test_a_recipe_built_in_python_is_checked_too():
    r = Recipe(
        "ties", (Expert("a", "a", {"weight": 1}), Expert("b", "b", {"weight": [0, 1]})), "base", {"density": 1.5}
    )
    assert refusal(r) == (
        "recipe, for model.layers.3.mlp.up_proj.weight: density must lie in [0, 1], got 1.5. For 1.5 % write 0.015."
    )
