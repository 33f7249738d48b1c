"""The loader: values as PyYAML reads them, lines remembered, and a sentence for everything that is not YAML."""

from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import RecipeError
from triune.recipes.yaml import read_yaml, write_yaml

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(trees)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_reads_what_safe_load_reads(tree):
    text = write_yaml(tree)
    assert read_yaml(text, "recipe.yml").tree == yaml.safe_load(text) == tree


def test_remembers_the_line_of_each_value():
    doc = read_yaml(
        "# a comment\nmodels:\n  - model: a\n    parameters:\n      density:\n        - 0.1\n        - 2\n", "r.yml"
    )
    assert doc.line(("models",)) == "r.yml:2"
    assert doc.line(("models", 0)) == "r.yml:3"
    assert doc.line(("models", 0, "parameters", "density")) == "r.yml:5"
    assert doc.line(("models", 0, "parameters", "density", 1)) == "r.yml:7"
    assert doc.line(("models", 0, "parameters", "density", 1, "value")) == "r.yml:7", "the nearest place known"
    assert doc.place(("models", 0, "parameters", "density")) == "r.yml:5, models[0] a, parameters.density"
    assert doc.place(("seed",)) == "r.yml:2, seed"


def test_anchors_and_merge_keys_work_as_in_pyyaml():
    text = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\none:\n  <<: *x\n  b: 5\nboth:\n  <<: [*x, *y]\nlist: [*x, *x]\n"
    assert read_yaml(text, "r.yml").tree == yaml.safe_load(text)


def test_a_key_is_text_even_where_yaml_would_read_a_switch_or_a_number():
    assert read_yaml("on: 1\n1: 2", "r.yml").tree == {"on": 1, "1": 2}


SEE = " Look at this line and the one above."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "r.yml:1:5: this is not readable YAML: mapping values are not allowed here." + SEE),
        (
            "a: 1\n\tb: 2",
            "r.yml:2:1: this is not readable YAML: while scanning for the next token, found character '\\t' that "
            "cannot start any token." + SEE,
        ),
        (
            "a: [1, 2",
            "r.yml:1:9: this is not readable YAML: while parsing a flow sequence, expected ',' or ']', but got "
            "'<stream end>'." + SEE,
        ),
        (
            "a: 1\n---\nb: 2",
            "r.yml:2:1: this is not readable YAML: expected a single document in the stream, but found another "
            "document." + SEE,
        ),
        (
            "a: !!python/object:os.system 1",
            "r.yml:1:4: this is not readable YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'." + SEE,
        ),
        ("a: *x", "r.yml:1:4: this is not readable YAML: found undefined alias 'x'." + SEE),
        (
            "a: 1\nb: \x01",
            "r.yml:2:4: this is not readable YAML: it holds the unprintable character U+0001. Remove it.",
        ),
        ("a: 2024-13-01", "r.yml:1:4: cannot read '2024-13-01': month must be in 1..12. If it is text, quote it."),
        ("a: !!set {b}", "r.yml:1: 'tag:yaml.org,2002:set' has no meaning in a recipe. Remove the tag."),
        ("? [a]\n: 1", "r.yml:1: a key must be one word, not a list or a mapping."),
        ("a: 1\nb: 2\na: 3", "r.yml:3: 'a' stands twice, first in line 1. Keep one."),
        ("m:\n- p: {a: 1,\n   a: 2}", "r.yml:3: 'a' stands twice under m[0].p, first in line 2. Keep one."),
        ("a: &x [*x]", "r.yml:1: this alias contains itself. Write its value out."),
        ("[" * 1000, "r.yml: brackets are nested too deeply for a recipe. Flatten it."),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(text, message):
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "r.yml")
    assert str(caught.value) == message


def test_a_file_cannot_grow_without_bound_through_aliases():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(RecipeError, match="more than 100000 values: this is no recipe"):
        read_yaml("\n".join(lines), "r.yml")
    merges = ["a0: &a0 {k: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)]
    with pytest.raises(RecipeError, match="more than 100000 values: this is no recipe"):
        read_yaml("\n".join(merges), "r.yml")


@given(st.text(max_size=40))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_no_text_ends_in_a_traceback(text):
    with suppress(RecipeError):
        read_yaml(text, "r.yml")
