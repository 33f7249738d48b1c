"""What a recipe may say, and the words in which it is refused."""

import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune import methods
from triune.errors import RecipeError
from triune.methods._spec import PerModel, merge_method
from triune.recipes import Expert, load_recipe, parse_recipe
from triune.recipes.yaml import write_yaml

FULL = """\
models:
  - model: org/a
    name: helpful
    parameters: {weight: 0.3, density: [0.2, 0.5, 0.2]}
  - model: {model: {path: org/b, revision: v1}, lora: {path: org/c}}
    parameters: {weight: 1e-5}
base_model: org/base
merge_method: ties
parameters: {normalize: true, scaling_factor: 1, density: [{filter: mlp, value: 0.5}, {value: [0, 1]}]}
dtype: float32
out_dtype: bfloat16
tokenizer_source: helpful
chat_template: auto
semantics: paper
seed: 7
output: lora
"""
RECIPE = """\
models:
  - model: org/a
    parameters: {weight: 0.3}
  - model: org/math
    parameters:
      weight: 1e-5
      %s
base_model: org/base
merge_method: ties
%s
"""


def refusal(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, origin="recipe.yml")
    return str(caught.value)


def test_every_key():
    recipe = parse_recipe(FULL, origin="recipe.yml", folder=Path("x"))
    first, second = recipe.experts
    assert first == Expert("org/a", "helpful", {"weight": 0.3, "density": (0.2, 0.5, 0.2)})
    assert first.place == "recipe.yml:2, models[0]"
    assert second == Expert("org/b@v1+org/c", "org/b@v1+org/c", {"weight": 1e-5})
    assert second.place == "recipe.yml:5, models[1]"
    assert (recipe.method, recipe.base, recipe.dtype, recipe.out_dtype) == ("ties", "org/base", "float32", "bfloat16")
    assert recipe.parameters == {
        "normalize": True,
        "lambda": 1.0,
        "density": ({"filter": "mlp", "value": 0.5}, {"filter": None, "value": (0.0, 1.0)}),
    }
    assert (recipe.tokenizer_source, recipe.chat_template) == ("org/a", "auto")
    assert (recipe.semantics, recipe.seed, recipe.output) == ("paper", 7, "lora")
    assert (recipe.text, recipe.origin, recipe.folder) == (FULL, "recipe.yml", Path("x"))
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_the_least_that_is_a_recipe():
    recipe = parse_recipe("merge_method: weight_average\nmodels: [{model: a}]\nparameters: {weight: 1}\n")
    assert (recipe.method, recipe.base, recipe.seed, recipe.output) == ("linear", None, 0, "full")


def test_keys_without_a_value_say_nothing():
    bare = parse_recipe("{merge_method: linear, models: [{model: a}], parameters: {weight: 1}}")
    keys = "dtype:\nslices:\nmodules:\ntokenizer:\nseed:\noutput:\nchat_template:\nbase_model:\nexperts:\n"
    padded = parse_recipe(
        f"merge_method: linear\nmodels: [{{model: a, name: , parameters: }}]\nparameters: {{weight: 1}}\n{keys}"
    )
    assert (padded.experts, padded.seed, padded.dtype, padded.base) == (bare.experts, 0, None, None)


@pytest.mark.parametrize(
    ("typed", "reference"),
    [
        ("org/a@v1+org/b", "org/a@v1+org/b"),
        ("{path: org/a}", "org/a"),
        ("{path: org/a, revision: v1}", "org/a@v1"),
        ("{model: org/a, lora: org/b}", "org/a+org/b"),
        (
            "{model: {path: org/a, revision: v1}, lora: {path: org/b, revision: v2}, override_architecture: }",
            "org/a@v1+org/b@v2",
        ),
    ],
)
def test_references_in_mergekits_spellings(typed, reference):
    recipe = parse_recipe(
        f"merge_method: linear\nmodels:\n- model: {typed}\n  parameters: {{weight: 1}}\nbase_model: {typed}"
    )
    assert (recipe.experts[0].reference, recipe.base) == (reference, reference)


def test_the_base_among_the_models_is_no_expert_where_differences_are_merged():
    text = "models: [{model: b}, {model: x}]\nbase_model: b\nparameters: {weight: 2}\nmerge_method: "
    deltas, tensors = parse_recipe(text + "ties"), parse_recipe(text + "linear")
    assert [e.reference for e in deltas.experts] == ["x"]
    assert deltas.experts[0].place == "recipe:1, models[1]"
    assert [e.reference for e in tensors.experts] == ["b", "x"]


def test_a_repeated_reference_gets_a_name_of_its_own():
    models = "models: [{model: a}, {model: a}, {model: b, name: a}, {model: a}]"
    recipe = parse_recipe(f"{models}\nmerge_method: linear\nparameters: {{weight: 1}}")
    assert [e.name for e in recipe.experts] == ["a", "a#2", "a#3", "a#4"]


@pytest.mark.parametrize("name", ["scaling_factor", "scaling", "alpha", "lambda"])
def test_other_names_of_a_parameter(name):
    assert parse_recipe(RECIPE % ("", f"parameters: {{{name}: 1e-1}}")).parameters == {"lambda": 0.1}


def test_int8_mask_and_empty_lists_change_nothing():
    plain = parse_recipe(RECIPE % ("", ""))
    padded = parse_recipe(RECIPE % ("int8_mask: true\n      density: []", "parameters: {int8_mask: true, lambda: []}"))
    assert (padded.experts, padded.parameters) == (plain.experts, plain.parameters)


def test_torchs_spelling_of_a_type():
    assert parse_recipe(RECIPE % ("", "dtype: torch.bfloat16")).dtype == "bfloat16"


@pytest.mark.parametrize("source", ["base", "union", "org/a", "org/base"])
@pytest.mark.parametrize("form", ["tokenizer_source: {}", "tokenizer: {{source: {}}}"])
def test_tokenizer_source(form, source):
    assert parse_recipe(RECIPE % ("", form.format(source))).tokenizer_source == source


WHERE = "recipe.yml:7, models[1] org/math, parameters.density"
ONE = "is not supported: triune merges whole models of one architecture. List them under models:; "
TOP = (
    "models, merge_method, base_model, parameters, dtype, out_dtype, tokenizer_source, tokenizer, chat_template, "
    "semantics, seed, output"
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("density: 1.5", f"density must lie in [0, 1], got 1.5 ({WHERE}). For 1.5 % write 0.015."),
        ("density: 1.5e0", f"density must lie in [0, 1], got 1.5 ({WHERE}). For 1.5 % write 0.015."),
        ("density: [0.2, -1]", f"density must lie in [0, 1], got -1 ({WHERE}[1])."),
        (
            "density: [{filter: mlp, value: 20}, {value: 1}]",
            f"density must lie in [0, 1], got 20 ({WHERE}[0].value). For 20 % write 0.2.",
        ),
        ("density: {filter: mlp, value: 2}", f"density must lie in [0, 1], got 2 ({WHERE}.value). For 2 % write 0.02."),
        ("density: abc", f"density must be a number, got 'abc' ({WHERE})."),
        ("density: true", f"density must be a number, got True ({WHERE})."),
        ("density: .nan", f"density must be a number, got nan ({WHERE})."),
        ("density:", f"density has no value ({WHERE}). Write one, or remove the line."),
        (
            "density: [1, {value: 1}]",
            "density must be one number or a list of numbers, or of {filter: ..., value: ...}, got [1, {'value': 1}] "
            f"({WHERE}).",
        ),
        (
            "density: {value: [[1]]}",
            f"density must be one number or a list of numbers, got [[1]] ({WHERE}.value).",
        ),
        ("densty: 1", "recipe.yml:7: unknown key 'densty' under models[1].parameters. Did you mean density?"),
        (
            "foo: 1",
            "recipe.yml:7: unknown key 'foo' under models[1].parameters. ties has weight, density, lambda, normalize.",
        ),
        ("seed: 1", "recipe.yml:7: unknown key 'seed' under models[1].parameters. It belongs at the top level."),
        (
            "density: {filtr: mlp, value: 1}",
            "recipe.yml:7: unknown key 'filtr' under models[1].parameters.density. Did you mean filter?",
        ),
        (
            "density: [{filter: mlp}]",
            "recipe.yml:7: models[1].parameters.density[0] has no value. Write `value: 0.5`, for example.",
        ),
        (
            "density: [{filter: 1, value: 1}]",
            "models[1].parameters.density[0].filter must be text, got 1 (recipe.yml:7). Put it in quotes.",
        ),
        (
            "scaling_factor: 1",
            "scaling_factor is one value for all experts (recipe.yml:7, models[1] org/math, "
            "parameters.scaling_factor). Move it under parameters: at the top level.",
        ),
        ("weight: 2", "recipe.yml:7: 'weight' stands twice under models[1].parameters, first in line 6. Keep one."),
    ],
)
def test_an_experts_parameter_is_refused(line, message):
    assert refusal(RECIPE % (line, "")) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("density: 0.2", "recipe.yml:10: unknown key 'density'. It belongs under parameters:."),
        ("scaling_factor: 1", "recipe.yml:10: unknown key 'scaling_factor'. It belongs under parameters:."),
        ("int8_mask: true", "recipe.yml:10: unknown key 'int8_mask'. It belongs under parameters:."),
        ("dtpe: float32", "recipe.yml:10: unknown key 'dtpe'. Did you mean dtype?"),
        ("zzz: 1", f"recipe.yml:10: unknown key 'zzz'. Known are {TOP}."),
        (
            "foo: 1\nbar: 1",
            f"recipe.yml:10: unknown key 'foo'. Known are {TOP}.\nrecipe.yml:11: unknown key 'bar'. Known are {TOP}.",
        ),
        (
            "parameters: {semantics: paper}",
            "recipe.yml:10: unknown key 'semantics' under parameters. It belongs at the top level.",
        ),
        (
            "parameters: {alpha: 1, lambda: 1}",
            "recipe.yml:10: 'lambda' and 'alpha' under parameters mean the same. Keep one.",
        ),
        ("parameters: {normalize: 1}", "normalize must be true or false, got 1 (recipe.yml:10, parameters.normalize)."),
        ("parameters: 3", "parameters must hold keys and values, got 3 (recipe.yml:10)."),
        (
            "dtype: float64",
            "dtype must be one of bfloat16, float16, float32, got 'float64' (recipe.yml:10). float32 is the widest.",
        ),
        (
            "out_dtype: bf16",
            "out_dtype must be one of bfloat16, float16, float32, got 'bf16' (recipe.yml:10). Did you mean bfloat16?",
        ),
        (
            "semantics: papr",
            "semantics must be one of mergekit, paper, got 'papr' (recipe.yml:10). Did you mean paper?",
        ),
        ("output: lora_", "output must be one of full, lora, got 'lora_' (recipe.yml:10). Did you mean lora?"),
        ("seed: -1", "seed must be a whole number, 0 or more, got -1 (recipe.yml:10)."),
        ("seed: true", "seed must be a whole number, 0 or more, got True (recipe.yml:10)."),
        ("chat_template: 3", "chat_template must be text, got 3 (recipe.yml:10). Put it in quotes."),
        ("chat_template: ''", "chat_template must not be empty, got '' (recipe.yml:10)."),
        (
            "tokenizer_source: unoin",
            "tokenizer_source must be base, union or one of the models, got 'unoin' (recipe.yml:10). Did you mean "
            "union?",
        ),
        (
            "tokenizer_source: base\ntokenizer: {source: base}",
            "recipe.yml:11: tokenizer and tokenizer_source say the same. Keep one.",
        ),
        (
            "tokenizer: {source: base, tokens: {}}",
            "recipe.yml:10: 'tokenizer.tokens' is not supported: triune takes tokens as they are. Keep only "
            "tokenizer: {source: ...}.",
        ),
        (
            "tokenizer: {source: base, pad_to_multiple_of: 8}",
            "recipe.yml:10: 'tokenizer.pad_to_multiple_of' is not supported: triune keeps the size of the vocabulary. "
            "Keep only tokenizer: {source: ...}.",
        ),
        (
            "tokenizer: {sorce: base, source: base}",
            "recipe.yml:10: unknown key 'sorce' under tokenizer. Did you mean source?",
        ),
        ("tokenizer: {}", "recipe.yml:10: tokenizer names no source. Write `source: union`, for example."),
        (
            "slices: [1]",
            f"recipe.yml:10: 'slices' {ONE}a list such as weight: [0.2, 0.8] changes a value along the layers.",
        ),
        (
            "modules: {a: 1}",
            f"recipe.yml:10: 'modules' {ONE}a filter such as {{filter: mlp, value: 0.5}} picks out tensors.",
        ),
        *(
            (f"{key}: 2", f"recipe.yml:10: '{key}' {ONE}one model of the same size comes out, no mixture of experts.")
            for key in ("experts", "gate_mode", "experts_per_token", "shared_experts")
        ),
    ],
)
def test_a_top_level_key_is_refused(line, message):
    assert refusal(RECIPE % ("", line)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yml: the recipe is empty. It needs at least models: and merge_method:."),
        ("- a", "recipe.yml: the recipe holds no keys and values. It needs at least models: and merge_method:."),
        (
            "merge_method: ties",
            "recipe.yml:1: models is missing. List the models to merge, each as `- model: org/name`.",
        ),
        (
            "models: [{model: a}]",
            "recipe.yml:1: merge_method is missing. Write `merge_method: ties`, for example; `triune methods` lists "
            "all.",
        ),
        ("merge_method: ties\nmodels: []", "models must list at least one model, got [] (recipe.yml:2)."),
        (
            "merge_method: ties\nmodels: {a: b}",
            "models must be a list with one `- model: org/name` for each model, got {'a': 'b'} (recipe.yml:2).",
        ),
        (
            "merge_method: ties\nmodels: [a]",
            "models[0] must hold keys and values, got 'a' (recipe.yml:2). Write `- model: org/name`.",
        ),
        (
            "merge_method: ties\nmodels:\n- name: a",
            "recipe.yml:3: models[0] names no model. Write `model: org/name`.",
        ),
        (
            "merge_method: ties\nmodels:\n- model: 3",
            "models[0].model must be text, got 3 (recipe.yml:3). Put it in quotes.",
        ),
        ("merge_method: ties\nmodels:\n- model: ' '", "models[0].model must not be empty, got ' ' (recipe.yml:3)."),
        (
            "merge_method: ties\nmodels:\n- model: {pth: a}",
            "models[0].model may hold model and lora, and in each path and revision, nothing else, got {'pth': 'a'} "
            "(recipe.yml:3).",
        ),
        (
            "merge_method: ties\nmodels:\n- model: {lora: a}",
            "models[0].model must be text, or a mapping such as {model: {path: org/name, revision: main}}, got "
            "{'lora': 'a'} (recipe.yml:3).",
        ),
        (
            "merge_method: ties\nmodels:\n- model: a\n  name: a b",
            "models[0].name must consist of letters, digits, _ and -, got 'a b' (recipe.yml:4).",
        ),
        (
            "merge_method: ties\nmodels:\n- model: a\n  weight: 1",
            "recipe.yml:4: unknown key 'weight' under models[0]. It belongs under parameters:.",
        ),
        (
            "merge_method: ties\nmodels:\n- model: a\n  nam: x",
            "recipe.yml:4: unknown key 'nam' under models[0]. Did you mean name?",
        ),
        (
            "merge_method: dare-ties\nmodels: [{model: a}]",
            "There is no merge method 'dare-ties' (recipe.yml:1). Did you mean dare_ties? `triune methods` lists them.",
        ),
        (
            "models: [{model: a, name: x}, {model: b, name: x}]\nmerge_method: linear\nparameters: {weight: 1}",
            "name 'x' stands twice (recipe.yml:1, models[1] b, name), first in recipe.yml:1. Change one.",
        ),
        (
            "models:\n- model: a\n  parameters: {weight: 1}\n- model: b\nmerge_method: linear",
            "linear needs weight (recipe.yml:4, models[1] b, parameters). Give it to every expert under its "
            "parameters:, or to all under parameters: at the top level.",
        ),
        (
            "models: [{model: a}]\nmerge_method: ties\nparameters: {weight: 1}",
            "base_model is missing: ties merges differences from it (recipe.yml:2, merge_method). Write "
            "`base_model: org/name`.",
        ),
        (
            "models: [{model: a}, {model: b}]\nmerge_method: model_stock\nbase_model: b",
            "model_stock needs at least 2 experts besides base_model, got 1 (recipe.yml:1, models). Add a model.",
        ),
        (
            "models: [{model: b}]\nmerge_method: ties\nbase_model: b\nparameters: {weight: 1}",
            "ties needs at least 1 expert besides base_model, got 0 (recipe.yml:1, models). Add a model.",
        ),
        (
            "models: [{model: a}]\nmerge_method: rewarded_soup\nparameters: {weight: 1, int8_mask: true}",
            "recipe.yml:3: unknown key 'int8_mask' under parameters. rewarded_soup has weight, space.",
        ),
    ],
)
def test_a_whole_recipe_is_refused(text, message):
    assert refusal(text) == message


@pytest.fixture
def toy(monkeypatch):
    """A method with every kind of parameter, some of which no real method has."""

    @merge_method(title="Toy", paper="", takes="tensors")
    def toy(deltas, *, rank: int, depths: PerModel[int] = 3, view=None):
        """A toy."""

    monkeypatch.setattr(methods, "find", lambda name: toy)
    return "models: [{model: a}]\nmerge_method: toy\nparameters: "


def test_whole_numbers(toy):
    assert parse_recipe(toy + "{rank: 4e0, depths: [2]}").parameters == {"rank": 4, "depths": (2,)}
    where = "recipe.yml:3, parameters"
    assert refusal(toy + "{rank: 2.5}") == f"rank must be a whole number, got 2.5 ({where}.rank)."
    assert refusal(toy + "{rank: .inf}") == f"rank must be a finite number, got inf ({where}.rank)."
    message = f"depths must be one whole number for all layers, got [1, 4] ({where}.depths)."
    assert refusal(toy + "{rank: 4, depths: [1, 4]}") == message
    message = (
        "toy needs rank (recipe.yml:1, models[0] a, parameters). Give it to all under parameters: at the top level."
    )
    assert refusal(toy + "{depths: 1}") == message


def test_files(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.encode())
    recipe = load_recipe(path)
    assert (recipe.folder, recipe.origin, recipe.text) == (tmp_path, "recipe.yml", FULL)
    assert recipe == parse_recipe(FULL)
    path.write_bytes(b"a: \xff")
    cases = {
        path: "recipe.yml: byte 3 is not UTF-8. Save the recipe as UTF-8 text.",
        tmp_path / "no.yml": f"There is no recipe at {tmp_path / 'no.yml'}. Check the path.",
        tmp_path: f"Cannot read the recipe at {tmp_path}: Is a directory. Name a YAML file.",
    }
    for bad, message in cases.items():
        with pytest.raises(RecipeError) as caught:
            load_recipe(bad)
        assert str(caught.value) == message


def test_torch_is_not_imported(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(FULL)
    code = (
        "import sys, pathlib; from triune.recipes import load_recipe, resolve; from triune.methods import find\n"
        f"r = load_recipe(pathlib.Path({str(path)!r}))\n"
        "resolve(r, find(r.method), 'model.layers.1.mlp', num_layers=2)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


keys = st.sampled_from(
    [
        "models",
        "model",
        "merge_method",
        "base_model",
        "parameters",
        "weight",
        "density",
        "filter",
        "value",
        "seed",
        "dtype",
    ]
)
leaves = st.sampled_from([None, True, 0, 0.5, 7, "", "a", "ties", "linear", "base", "1e-3", [], {}])
junk = st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=4), max_leaves=12)


@given(st.dictionaries(keys, junk, max_size=6), st.sampled_from(["ties", "linear", "model_stock", "della"]), junk)
@settings(derandomize=True, max_examples=150, deadline=None)
def test_no_recipe_ends_in_a_traceback(tree, method, parameters):
    for extra in (
        {},
        {"merge_method": method, "models": [{"model": "a", "parameters": parameters}], "base_model": "b"},
    ):
        with suppress(RecipeError):
            parse_recipe(write_yaml({**tree, **extra}))
