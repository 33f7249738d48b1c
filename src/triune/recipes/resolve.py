"""From the settings in a recipe to the values for one tensor, by mergekit's rules.

A setting is a scalar, a gradient along the layers, or a list of ``{filter, value}`` of which the first that fits the
tensor's name wins. The expert's own setting comes before the recipe's, and that before the method's default; a list in
which nothing fits passes on to the next. All of mergekit 0.1.5, so that old recipes keep their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triune.errors import ParameterError, RecipeError
from triune.recipes.build import missing

if TYPE_CHECKING:
    from triune.methods._spec import Method, Parameter
    from triune.recipes.schema import Expert, Recipe

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)(?:\.|$)")


def layer_position(name: str, num_layers: int) -> float:
    """Where a tensor stands along the layers, 0 to 1. Tensors outside them, at either end, stand at 0.

    >>> layer_position("model.layers.3.mlp.up_proj.weight", 7), layer_position("lm_head.weight", 7)
    (0.5, 0.0)
    """
    found = _LAYER.search(name)
    if not found:
        return 0.0
    return min(int(found[1]) / (num_layers - 1), 1.0) if num_layers > 1 else 1.0


def count_layers(names: Iterable[str]) -> int:
    """How many layers the tensors with these names make.

    >>> count_layers(["model.embed_tokens.weight", "model.layers.0.a", "model.layers.11.a"])
    12
    """
    return max((int(found[1]) + 1 for found in map(_LAYER.search, names) if found), default=0)


def evaluate(setting: Any, tensor: str, position: float) -> Any:
    """The value of one setting for one tensor, or None where it has none.

    >>> evaluate([0.0, 1.0, 0.0], "model.layers.1.mlp", 0.25)
    0.5
    >>> evaluate([{"filter": "mlp", "value": 0.3}, {"value": 0.9}], "model.layers.1.mlp", 0.25)
    0.3
    """
    if isinstance(setting, Mapping):
        setting = (setting,)
    if not isinstance(setting, Sequence) or isinstance(setting, str):
        return setting
    if not setting:
        return None
    if isinstance(setting[0], Mapping):
        fits = (e for e in setting if e.get("filter") in (None, "*") or e["filter"] in tensor)
        return next((evaluate(e["value"], tensor, position) for e in fits), None)
    scaled = position * (len(setting) - 1)
    low = int(scaled)
    if any(isinstance(v, bool | str) for v in setting):
        return setting[low]
    high = min(len(setting) - 1, low + 1)
    return (1 - (scaled - low)) * setting[low] + (scaled - low) * setting[high]


def resolve(recipe: Recipe, method: Method, tensor: str, *, num_layers: int) -> dict[str, Any]:
    """What the recipe says about one tensor, ready for :meth:`Method.bind`, which adds the defaults.

    Returns:
        Public names of parameters and their values; a tuple with one value for each expert where the method wants one.

    Raises:
        RecipeError: a required parameter has no value, or the method refuses the values together, such as weights to be
            normalized that sum to zero.
    """
    position = layer_position(tensor, num_layers)
    values: dict[str, Any] = {}
    for p in method.parameters:
        if p.name == "semantics":
            value: Any = recipe.semantics
        elif p.per_model:
            each = [_value(recipe, method, p, expert, tensor, position) for expert in recipe.experts]
            value = tuple(p.default if v is None else v for v in each) if any(v is not None for v in each) else None
        else:
            value = _value(recipe, method, p, None, tensor, position)
        if value is not None:
            values[p.name] = value
    try:
        method.bind(values, len(recipe.experts))
    except ParameterError as error:
        raise RecipeError(f"{recipe.origin}, for {tensor}: {error}") from None
    return values


def _value(recipe: Recipe, method: Method, p: Parameter, expert: Expert | None, tensor: str, position: float) -> Any:
    """The first source that has a value for this tensor."""
    sources = (expert.parameters, recipe.parameters) if expert else (recipe.parameters,)
    for source in sources:
        if p.name in source and (found := evaluate(source[p.name], tensor, position)) is not None:
            return found
    if p.required:
        place = f"{expert.place} {expert.reference}" if expert else recipe.origin
        raise RecipeError(missing(method, p, f"{place}, parameters.{p.name}, for {tensor}"))
    return None
