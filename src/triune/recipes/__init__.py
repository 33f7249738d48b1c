"""What the user asked for: recipes read, checked, and resolved for each tensor. Imports no torch."""

from triune.recipes.load import load_recipe, parse_recipe, recipe_from_flags
from triune.recipes.resolve import count_layers, evaluate, layer_position, resolve
from triune.recipes.schema import Expert, Recipe

__all__ = [
    "Expert",
    "Recipe",
    "count_layers",
    "evaluate",
    "layer_position",
    "load_recipe",
    "parse_recipe",
    "recipe_from_flags",
    "resolve",
]
