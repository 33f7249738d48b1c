"""Flags and ``--set``: they write a recipe, and the recipe they write says the same."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import RecipeError
from triune.recipes import Expert, load_recipe, parse_recipe, recipe_from_flags

RECIPE = """\
# mine
models:
  - model: org/a
    name: math
    parameters: {weight: 0.3, density: 0.5}
  - model: org/b
    parameters: {weight: 1}
base_model: org/base
merge_method: ties
parameters: {scaling_factor: 0.7, density: 0.9}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE)
    return path


def refusal(call, *args, **keywords):
    with pytest.raises(RecipeError) as caught:
        call(*args, **keywords)
    return str(caught.value)


def test_a_command_line_is_a_recipe():
    recipe = recipe_from_flags(base="B", experts=["helpful=H", "org/x"], method="ties", settings=["weight.helpful=0.5"])
    assert recipe.text == (
        "models:\n- model: H\n  name: helpful\n  parameters:\n    weight: 0.5\n- model: org/x\nmerge_method: ties\n"
        "base_model: B\nparameters:\n  weight: 1.0\n"
    )
    assert recipe.experts == (Expert("H", "helpful", {"weight": 0.5}), Expert("org/x", "org/x"))
    assert recipe.experts[1].place == "command line, models[1]"
    assert (recipe.method, recipe.base, recipe.parameters) == ("ties", "B", {"weight": 1.0})
    assert (recipe.origin, recipe.folder) == ("command line", None)


def test_the_default_method_needs_no_weights():
    recipe = recipe_from_flags(base="B", experts=["H", "M", "T"])
    assert (recipe.method, recipe.parameters) == ("r_tsvm", {})


@pytest.mark.parametrize(
    ("method", "flags", "shared"),
    [
        ("linear", [], {"weight": 0.25}),
        ("rewarded_soup", [], {"weight": 0.25}),
        ("ties", [], {"weight": 1.0}),
        ("ties", ["weight=[0, 1]"], {"weight": (0.0, 1.0)}),
        ("model_stock", [], {}),
        ("ties", ["weight.a=1", "weight.b=1", "weight.c=1", "weight.d=1"], {}),
        ("ties", ["weight.a=1", "scaling=1e-1"], {"weight": 1.0, "lambda": 0.1}),
        ("ties", ["merge_method=linear"], {"weight": 0.25}),
    ],
)
def test_weights_that_nobody_set(method, flags, shared):
    assert recipe_from_flags(base="B", experts=list("abcd"), method=method, settings=flags).parameters == shared


def test_a_path_that_exists_is_not_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-5").mkdir()
    (tmp_path / "helpful").mkdir()
    experts = ["lr=1e-5", "lr=1e-5+adapter", "helpful=H=1", "./x=y", "a b=c", "demo:helpful", "h=org/a@main+org/b"]
    recipe = recipe_from_flags(base="B", experts=experts)
    assert [(e.reference, e.name) for e in recipe.experts] == [
        ("lr=1e-5", "lr=1e-5"),
        ("lr=1e-5+adapter", "lr=1e-5+adapter"),
        ("H=1", "helpful"),
        ("./x=y", "./x=y"),
        ("a b=c", "a b=c"),
        ("demo:helpful", "demo:helpful"),
        ("org/a@main+org/b", "h"),
    ]


def test_what_is_set_wins_over_the_file(recipe_file):
    flags = [
        "seed=3",
        "dtype=float32",
        "density=0.3",
        "lambda=0.5",
        "weight.math=2",
        "weight.org/b=[0, 1]",
        "output=lora",
    ]
    recipe = load_recipe(recipe_file, [*flags, "base_model=123"])
    assert recipe.experts == (
        Expert("org/a", "math", {"weight": 2.0}),
        Expert("org/b", "org/b", {"weight": (0.0, 1.0)}),
    )
    assert recipe.parameters == {"density": 0.3, "lambda": 0.5}
    assert (recipe.seed, recipe.dtype, recipe.output, recipe.base) == (3, "float32", "lora", "123")
    assert recipe.text.startswith("# recipe.yml --set 'seed=3' --set 'dtype=float32'")
    assert parse_recipe(recipe.text) == recipe


def test_the_last_setting_wins(recipe_file):
    assert load_recipe(recipe_file, ["density=0.3", "density=0.4"]).parameters["density"] == 0.4
    recipe = load_recipe(recipe_file, ["density=0.3", "density.math=0.4"])
    assert (recipe.parameters["density"], recipe.experts[0].parameters["density"]) == (0.3, 0.4)
    assert "density" not in load_recipe(recipe_file, ["density.math=0.4", "density=0.3"]).experts[0].parameters


def test_without_settings_the_text_is_as_typed(recipe_file):
    assert load_recipe(recipe_file).text == RECIPE


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("density", "--set density: write key=value, as in --set density=0.2."),
        ("density=", "--set density=: write key=value, as in --set density=0.2."),
        ("=1", "--set =1: write key=value, as in --set density=0.2."),
        ("densty=1", "--set densty=1: ties has no parameter 'densty'. Did you mean density?"),
        ("sed=1", "--set sed=1: ties has no parameter 'sed'. Did you mean seed?"),
        ("zzz=1", "--set zzz=1: ties has no parameter 'zzz'. ties has weight, density, lambda, normalize."),
        (
            "weight.mth=1",
            "--set weight.mth=1: no expert is called 'mth'; there are math, org/b. Did you mean math?",
        ),
        (
            "density=1.5",
            "density must lie in [0, 1], got 1.5 (--set density=1.5, parameters.density). For 1.5 % write 0.015.",
        ),
        (
            "density.math=2",
            "density must lie in [0, 1], got 2 (--set density.math=2, models[0] org/a, parameters.density). "
            "For 2 % write 0.02.",
        ),
        (
            "lambda.math=2",
            "lambda is one value for all experts (--set lambda.math=2, models[0] org/a, parameters.lambda). Move it "
            "under parameters: at the top level.",
        ),
        ("seed=x", "seed must be a whole number, 0 or more, got 'x' (--set seed=x)."),
        ("dtype=fp32", "dtype must be one of bfloat16, float16, float32, got 'fp32' (--set dtype=fp32)."),
        (
            "merge_method=tie",
            "There is no merge method 'tie' (--set merge_method=tie). Did you mean ties? `triune methods` lists them.",
        ),
        (
            "density=[1",
            "--set density:1:3: this is not readable YAML: while parsing a flow sequence, expected ',' or ']', but "
            "got '<stream end>'. Look at this line and the one above.",
        ),
    ],
)
def test_a_setting_is_refused(recipe_file, setting, message):
    assert refusal(load_recipe, recipe_file, [setting]) == message


def test_flags_are_refused():
    def message(**flags):
        return refusal(recipe_from_flags, **({"base": "B", "experts": ["H"], "method": "ties"} | flags))

    assert message(experts=[]) == "models must list at least one model, got [] (command line)."
    assert message(experts=["h="]) == "models[0].model must not be empty, got '' (command line)."
    assert message(base=None) == (
        "base_model is missing: ties merges differences from it (command line, merge_method). Add --base MODEL."
    )
    assert message(method="tie").startswith("There is no merge method 'tie' (command line). Did you mean ties?")
    assert message(method="linear", experts=[]) == "models must list at least one model, got [] (command line)."


def test_a_setting_meets_a_broken_file(tmp_path):
    path = tmp_path / "r.yml"
    for text in (
        "merge_method: ties\nmodels: 3",
        "merge_method: ties\nmodels: [3, {model: a, parameters: 4}]",
        "models: []",
    ):
        path.write_text(text)
        assert refusal(load_recipe, path, ["density=0.5"])
    path.write_text("merge_method: ties\nmodels: [{model: a, parameters: 4}]")
    assert (
        refusal(load_recipe, path, ["density=0.5"])
        == "models[0].parameters must hold keys and values, got 4 (r.yml:2)."
    )
    path.write_text("")
    assert refusal(load_recipe, path, ["seed=1"]) == (
        "r.yml: the recipe is empty. It needs at least models: and merge_method:."
    )


labels = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
references = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda t: t.strip())
values = st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=1, max_size=3)


@given(
    base=references,
    experts=st.lists(references | st.builds("{}={}".format, labels, references), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 2**63),
    density=values,
    scaling=st.floats(allow_nan=False, allow_infinity=False),
)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_text_of_a_command_line_reads_back_as_the_same_recipe(base, experts, seed, density, scaling):
    flags = [f"seed={seed}", f"density={density}", f"lambda={scaling}", "semantics=paper"]
    try:
        recipe = recipe_from_flags(base=base, experts=experts, method="ties", settings=flags)
    except RecipeError as error:  # two equal labels, a blank reference, or only the base
        assert any(why in str(error) for why in ("stands twice", "must not be empty", "at least 1 expert"))  # noqa: PT017
        return
    again = parse_recipe(recipe.text)
    assert again == recipe
    assert again.parameters["lambda"] == scaling
    assert again.parameters["density"] == (tuple(density) if isinstance(density, list) else density)
    assert Path(recipe.origin) == Path("command line")
