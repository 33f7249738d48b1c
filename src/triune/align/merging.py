"""How specialists become one model: all at once, or one after the other as they arrive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from triune.config import Strict
from triune.errors import UserError
from triune.methods import Method, find
from triune.methods._spec import PARAMETER_ALIASES, View
from triune.recipes import Recipe, recipe_from_flags, resolve
from triune.recipes.schema import TOP_LEVEL

if TYPE_CHECKING:
    from pathlib import Path

MERGED = "merged"
"""What the model merged so far is called in the recipe that adds one more specialist."""
BESIDES = ("semantics", "dtype")
"""Keys of a recipe that may stand among a merge's parameters."""


class MergeEntry(Strict):
    """One way to merge the specialists; ``ties`` is short for ``{name: ties, method: ties}``."""

    name: str = Field(description="What the result is called; the method's name if not given.")
    method: str = Field(description="`triune methods` lists them.")
    parameters: Mapping[str, Any] = Field({}, description="Of the method; weight.helpful is that of one specialist.")
    output: Literal["full", "lora"] = Field("full", description="Write a whole model, or an adapter.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        value = {"method": value} if isinstance(value, str) else value
        return {"name": value["method"], **value} if isinstance(value, dict) and "method" in value else value

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        return find(method).name

    @field_validator("parameters")
    @classmethod
    def _of_the_method(cls, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        for key in parameters:
            if key in TOP_LEVEL and key not in BESIDES:
                raise ValueError(f"may not hold {key}, which is no parameter of a method.")
        return parameters


def recipe_of(
    entry: MergeEntry,
    parameters: Mapping[str, Any],
    experts: Mapping[str, str],
    *,
    base: str,
    seed: int,
    folder: Path | None = None,
) -> Recipe:
    """The recipe of one merge.

    Args:
        parameters: the entry's, or those of :func:`one_more`.
        experts: label -> reference.
        folder: where relative references start.
    """
    settings = {"seed": seed, "output": entry.output, **parameters}
    try:
        recipe = recipe_from_flags(
            base=base,
            experts=[f"{label}={reference}" for label, reference in experts.items()],
            method=entry.method,
            settings=[f"{key}={json.dumps(value)}" for key, value in settings.items()],
        )
    except UserError as error:
        raise UserError(f"merges, {entry.name}: {str(error).replace('--set ', '')}") from None
    return replace(recipe, folder=folder, origin=f"merges, {entry.name}")


def check(recipe: Recipe) -> None:
    """Refuse what can be known to fail before there are models to merge."""
    method = find(recipe.method)
    values = resolve(recipe, method, "model.layers.0.mlp.up_proj.weight", num_layers=1)
    reason = method.refuses_factors(method.bind(values, len(recipe.experts)))
    if recipe.output == "lora" and reason:
        raise UserError(f"{recipe.origin}: output: lora: {reason.replace('--set ', '')}, or use output: full.")


def averages(method: Method, parameters: Mapping[str, Any]) -> bool:
    """Whether a method averages: then twice the weights give the same model. A sum doubles.

    The method itself is asked, on a few numbers: ``normalize`` has several defaults, and ``semantics: paper`` overrules it.

    >>> averages(find("ties"), {}), averages(find("task_arithmetic"), {})
    (True, False)
    """
    if method.takes == "tensors" and "normalize" not in parameters:
        return True
    import torch

    how = {key: parameters[key] for key in ("normalize", "semantics") if key in parameters}
    deltas = torch.linspace(-1, 2, 128).reshape(2, 8, 8) ** 3
    once, twice = (method(deltas, view=View(experts=("a", "b")), weight=[w, w], **how) for w in (1.0, 2.0))
    return torch.allclose(once, twice)


def one_more(method: Method, parameters: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The parameters with which one more specialist joins the merge of those before it.

    In the end each specialist shall count as in one merge of all. With weights w_t, W_t = w_1 + .. + w_t, deltas d_t and the
    method's last factor lambda, merging the first t specialists at once moves the base by

        average   D_t = lambda sum_i w_i d_i / W_t  =  W_{t-1}/W_t D_{t-1}  +  lambda w_t/W_t d_t
        sum       D_t = lambda sum_i w_i d_i        =              D_{t-1}  +  lambda w_t d_t

    An average carries the merged model with the weight of all that is in it; a sum carries it with 1, because it is a sum
    already. D_{t-1} has lambda inside, so lambda goes into the newcomer's weight; an average divides by both weights, so
    their sum takes lambda's place. The first specialist is not merged yet and is treated like a newcomer.

    Exact for methods that are linear in the deltas; the others (trimming, signs, singular vectors) get the same weights.

    Args:
        names: the specialists so far, in order of their arrival, the newcomer last.

    Raises:
        UserError: the method has no weights, they and lambda are no plain numbers, or whole models would be added up.

    >>> one_more(find("linear"), {}, ["a", "b", "c"])["weight.merged"]
    0.6666666666666666
    >>> one_more(find("task_arithmetic"), {"lambda": 0.5}, ["a", "b", "c"])
    {'weight.merged': 1.0, 'weight.c': 0.5, 'lambda': 1.0}
    """
    known = [p.name for p in method.parameters]
    if "weight" not in known:
        raise UserError(
            f"{method.name} gives its models no weights, so a merged model cannot count for all the specialists in it: it "
            "has no continual form. Take another method, or paradigm: static."
        )
    average = averages(method, parameters)
    if method.takes == "tensors" and not average:
        raise UserError(
            f"{method.name} with normalize: false adds up whole models, the base in each of them: until the last specialist "
            "has come, its weights do not make a model. Remove normalize: of weights that add up to 1 the average is the "
            "same in the end."
        )
    factor = next((name for name in PARAMETER_ALIASES if name in known), None)
    given = {_canonical(method, key): value for key, value in parameters.items()}
    weight = [_number(given, f"weight.{name}", _number(given, "weight", 1.0)) for name in names]
    scale = _number(given, factor, 1.0) if factor else 1.0
    *earlier, new = names
    first = len(earlier) == 1
    carried = sum(weight[:-1]) if average or first else 1.0
    total = carried + weight[-1] if average else 1.0
    if total == 0:
        raise UserError(f"the weights of {', '.join(names)} add up to zero, so there is no average. Change one.")
    before, after = carried / total * (scale if first else 1.0), weight[-1] / total * scale
    label = earlier[0] if first else MERGED
    kept = {
        key: value
        for key, value in given.items()
        if key.partition(".")[0] not in ("weight", factor) and key.partition(".")[2] in ("", label, new)
    }
    kept |= {f"weight.{label}": before, f"weight.{new}": after}
    return kept | ({factor: before + after if average else 1.0} if factor else {})


def labels(parameters: Mapping[str, Any]) -> list[str]:
    """Of the two models in parameters by :func:`one_more`, the newcomer last."""
    return [key.partition(".")[2] for key in parameters if key.startswith("weight.")]


def _canonical(method: Method, key: str) -> str:
    name, dot, label = key.partition(".")
    return f"{method.parameter(name).name}{dot}{label}" if name != "dtype" else key


def _number(given: Mapping[str, Any], key: str, default: float) -> float:
    value = given.get(key, default)
    try:
        return float("none" if isinstance(value, bool) else value)  # text, too: YAML reads 1e-5 as such
    except (TypeError, ValueError):
        raise UserError(f"{key} must be a plain number with paradigm: continual, got {value!r}.") from None
