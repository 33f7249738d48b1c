"""What a parameter accepts and in which words it refuses; binding; the table of methods."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import ParameterError, RecipeError
from triune.methods import ALIASES, METHODS, find
from triune.methods._spec import (
    REQUIRED,
    Density,
    Interval,
    Parameter,
    PerModel,
    Scaling,
    View,
    Weight,
    merge_method,
)


@merge_method(title="Sample", paper="", minimum=2)
def sample(
    deltas: torch.Tensor,
    *,
    weight: Weight,
    density: Density = 1.0,  # type: ignore[assignment]
    lambda_: Scaling = 1.0,
    rank: Annotated[int, Interval("[1, 8]")] = 2,
    tags: PerModel[bool] = False,  # type: ignore[assignment]
    rule: Literal["mean", "sum"] = "mean",
    view: View | None = None,
    stats: Any = None,
) -> torch.Tensor:
    """Return the mean.

    More words.
    """
    return deltas.mean(0)


# ---- intervals


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1]", [0, 0.5, 1], [-1e-9, 1 + 1e-9]),
        ("(0, 1]", [1e-300, 1], [0, -0.0, 1.1]),
        ("[0, 1)", [0, -0.0, 1 - 1e-16], [1]),
        ("(0, 1)", [0.5], [0, 1]),
        ("(-inf, inf)", [0, -1e308, 1e308], [float("inf"), float("-inf")]),
        ("[0, inf)", [0, 1e308], [-1e-300, float("inf")]),
        ("[-1, 1]", [-1, 1], [-1.5]),
    ],
)
def test_an_interval_holds_what_mathematics_says(text: str, inside: list[float], outside: list[float]) -> None:
    assert all(Interval(text).holds(x) for x in inside)
    assert not any(Interval(text).holds(x) for x in (*outside, float("nan")))


@settings(derandomize=True, deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-3, 3))
def test_closed_is_open_and_its_ends(a: float, b: float, x: float) -> None:
    low, high = min(a, b), max(a, b)
    closed, opened = Interval(f"[{low!r}, {high!r}]"), Interval(f"({low!r}, {high!r})")
    assert closed.holds(x) == (low <= x <= high)
    assert opened.holds(x) == (low < x < high)


# ---- one value

DENSITY = Parameter("density", float, 1.0, True, Interval("[0, 1]"))
RANK = Parameter("rank", int, 2, False, Interval("[1, 8]"))
NORMALIZE = Parameter("normalize", bool, True)
RULE = Parameter("rule", str, "mean", choices=("mean", "sum"))
REFUSALS: list[tuple[Parameter, Any, str]] = [
    (DENSITY, 1.5, "density must lie in [0, 1], got 1.5. For 1.5 % write 0.015."),
    (DENSITY, 20, "density must lie in [0, 1], got 20. For 20 % write 0.2."),
    (DENSITY, "2e1", "density must lie in [0, 1], got 2e1. For 20 % write 0.2."),
    (DENSITY, 100, "density must lie in [0, 1], got 100. For 100 % write 1."),
    (DENSITY, 101, "density must lie in [0, 1], got 101."),
    (DENSITY, -0.1, "density must lie in [0, 1], got -0.1."),
    (DENSITY, "half", "density must be a number, got 'half'."),
    (DENSITY, True, "density must be a number, got True."),
    (DENSITY, None, "density must be a number, got None."),
    (DENSITY, [0.5], "density must be a number, got [0.5]."),
    (DENSITY, float("nan"), "density must be a number, got nan."),
    (DENSITY, "inf", "density must be a finite number, got 'inf'."),
    (RANK, 2.5, "rank must be a whole number, got 2.5."),
    (RANK, 9, "rank must lie in [1, 8], got 9."),
    (RANK, float("inf"), "rank must be a finite number, got inf."),
    (RANK, 10**400, f"rank must be a number, got {10**400}."),
    (NORMALIZE, 1, "normalize must be true or false, got 1."),
    (NORMALIZE, "true", "normalize must be true or false, got 'true'."),
    (RULE, "meen", "rule must be one of mean, sum, got 'meen'. Did you mean mean?"),
    (RULE, 3, "rule must be one of mean, sum, got 3."),
]


@pytest.mark.parametrize(("parameter", "value", "message"), REFUSALS)
def test_refusals_word_by_word(parameter: Parameter, value: Any, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        parameter.check(value)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        (DENSITY, "1e-5", 1e-5),  # YAML reads a number without a dot as text
        (DENSITY, 1, 1.0),
        (DENSITY, 0, 0.0),
        (RANK, 3.0, 3),
        (RANK, "3", 3),
        (NORMALIZE, False, False),
        (RULE, "sum", "sum"),
    ],
)
def test_accepted_values_get_the_parameters_type(parameter: Parameter, value: Any, expected: Any) -> None:
    found = parameter.check(value)
    assert found == expected
    assert type(found) is parameter.kind


# ---- a method


def test_parameters_are_read_from_the_signature() -> None:
    assert [(p.name, p.kind, p.default, p.per_model, p.choices) for p in sample.parameters] == [
        ("weight", float, REQUIRED, True, ()),
        ("density", float, 1.0, True, ()),
        ("lambda", float, 1.0, False, ()),
        ("rank", int, 2, False, ()),
        ("tags", bool, False, True, ()),
        ("rule", str, "mean", False, ("mean", "sum")),
    ]
    assert [p.interval and p.interval.text for p in sample.parameters] == [
        "(-inf, inf)", "[0, 1]", "(-inf, inf)", "[1, 8]", None, None
    ]  # fmt: skip
    assert (sample.name, sample.summary, sample.doc) == (
        "sample",
        "Return the mean.",
        "Return the mean.\n\nMore words.",
    )


def test_bind_fills_in_defaults_and_broadcasts() -> None:
    assert sample.bind({"weight": 0.5, "density": [0.1, "2e-1", 1]}, 3) == {
        "weight": (0.5, 0.5, 0.5),
        "density": (0.1, 0.2, 1.0),
        "lambda_": 1.0,
        "rank": 2,
        "tags": (False, False, False),
        "rule": "mean",
    }


@pytest.mark.parametrize("alias", ["lambda", "scaling_factor", "scaling", "alpha"])
def test_bind_knows_other_names(alias: str) -> None:
    """They used to pass the check and then be forgotten."""
    assert sample.parameter(alias).name == "lambda"
    assert sample.bind({"weight": 1, alias: 0.3}, 2)["lambda_"] == 0.3


@pytest.mark.parametrize("alias", ["lambda", "scaling_factor", "scaling", "alpha"])
def test_tsvms_own_word_is_scaling(alias: str) -> None:
    assert find("tsvm").parameter(alias).name == "scaling"
    assert find("tsvm").bind({alias: 0.3}, 2)["scaling"] == 0.3


BINDS: list[tuple[dict[str, Any], int, str]] = [
    ({}, 2, "sample needs weight: give it to every expert, or to all at once."),
    ({"weight": [1, 2]}, 3, "weight must hold one value for each of 3 experts, got 2."),
    ({"weight": 1, "lambda": 1, "alpha": 2}, 2, "lambda is given twice, once as alpha. Keep one."),
    ({"weight": 1}, 1, "sample needs at least 2 experts, got 1."),
    ({"weight": 1, "densty": 0.2}, 2, "sample has no parameter 'densty'; it has weight, density, lambda, rank, tags, rule. "
     "Did you mean density?"),
    ({"weight": 1, "zzz": 0.2}, 2, "sample has no parameter 'zzz'; it has weight, density, lambda, rank, tags, rule."),
    ({"weight": 1, "view": 0.2}, 2, "sample has no parameter 'view'; it has weight, density, lambda, rank, tags, rule."),
    ({"weight": "heavy"}, 2, "weight must be a number, got 'heavy'."),
]  # fmt: skip


@pytest.mark.parametrize(("values", "experts", "message"), BINDS)
def test_bind_refuses_word_by_word(values: dict[str, Any], experts: int, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        sample.bind(values, experts)
    assert str(error.value) == message


# ---- the table


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_is_found_under_its_name(name: str) -> None:
    method = find(name)
    assert method.name == name
    assert find(name) is method
    assert method.paper.startswith("https://arxiv.org/abs/")


def test_aliases() -> None:
    for alias, name in ALIASES.items():
        assert find(alias) is find(name)
        assert alias in find(name).aliases
    assert {alias for name in METHODS for alias in find(name).aliases} == set(ALIASES)


def test_an_unknown_method() -> None:
    with pytest.raises(RecipeError) as error:
        find("tis")
    assert str(error.value) == "There is no merge method 'tis'. Did you mean ties? `triune methods` lists them."


def test_the_common_defaults_of_mergekit() -> None:
    """The table of defaults in its documentation: normalize, rescale, and who has them."""
    found = {
        name: tuple(p.default for key in ("normalize", "rescale") for p in find(name).parameters if p.name == key)
        for name in METHODS
        if find(name).from_mergekit
    }
    assert found == {
        "linear": (True,),
        "model_stock": (),
        "task_arithmetic": (False,),
        "ties": (True,),
        "dare_linear": (False, True),
        "dare_ties": (False, True),
        "della_linear": (False, True),
        "della": (True, True),
        "breadcrumbs": (False,),
        "breadcrumbs_ties": (False,),
    }


def test_torch_is_not_imported_by_the_table() -> None:
    code = (
        "import sys, triune, triune.methods as m\n"
        "specs = [m.find(name) for name in (*m.METHODS, *m.ALIASES)]\n"
        "assert len({s.name for s in specs}) == 13, specs\n"
        "[s.summary for s in specs]; [s.parameters for s in specs]\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
