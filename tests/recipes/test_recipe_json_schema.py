"""The published schema accepts what triune accepts, and refuses what one key at a time can show to be wrong."""

import json
from pathlib import Path

import pytest
import yaml

from triune.methods import METHODS
from triune.recipes.json_schema import recipe_json_schema

jsonschema = pytest.importorskip("jsonschema")

BASE = {"models": [{"model": "a", "parameters": {"weight": 1}}], "merge_method": "ties", "base_model": "b"}


@pytest.fixture(scope="module")
def validator():
    schema = recipe_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {
            "dtype": "float32",
            "out_dtype": None,
            "seed": 3,
            "semantics": "paper",
            "output": "lora",
            "chat_template": "auto",
        },
        {"tokenizer": {"source": "union"}, "tokenizer_source": None},
        {"parameters": {"density": [0.1, 0.2], "scaling_factor": 1, "int8_mask": True, "normalize": [True, False]}},
        {"parameters": {"density": [{"filter": "mlp", "value": [0.1, 1]}, {"value": 0.3}]}},
        {"models": [{"model": {"model": {"path": "a"}}, "name": "x", "parameters": {"density": 0.2}}]},
        {"merge_method": "linear", "base_model": None},
        {"merge_method": "resm", "models": [{"model": "a"}]},
    ],
)
def test_accepts(validator, extra):
    validator.validate(BASE | extra)


@pytest.mark.parametrize(
    "extra",
    [
        {"sede": 3},
        {"merge_method": "tie"},
        {"dtype": "float64"},
        {"seed": -1},
        {"models": []},
        {"models": [{"model": "a", "weight": 1}]},
        {"models": [{"model": "a", "parameters": {"lambda": 1}}]},
        {"models": [{"model": "a", "name": "a b"}]},
        {"parameters": {"density": 1.5}},
        {"parameters": {"densty": 0.5}},
        {"parameters": {"semantics": "paper"}},
        {"parameters": {"density": [{"filter": "mlp", "valu": 1}]}},
        {"tokenizer": {"tokens": {}}},
        {"slices": []},
    ],
)
def test_refuses(validator, extra):
    assert not validator.is_valid(BASE | extra)


def test_methods_that_merge_differences_need_a_base(validator):
    assert not validator.is_valid({k: v for k, v in BASE.items() if k != "base_model"})


def test_every_method_is_known():
    assert set(recipe_json_schema()["properties"]["merge_method"]["enum"]) >= set(METHODS)


def test_a_recipe_in_yaml(validator):
    validator.validate(yaml.safe_load("merge_method: linear\nmodels: [{model: a, parameters: {weight: 0.5}}]"))


def test_the_published_copy_is_current():
    """Else: ``python -m triune.recipes.json_schema > docs/recipe.schema.json``."""
    published = Path(__file__).parents[2] / "docs" / "recipe.schema.json"
    assert json.loads(published.read_text()) == json.loads(json.dumps(recipe_json_schema()))
