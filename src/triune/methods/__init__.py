"""The table of merge methods: a name in a recipe, the file and the function behind it.

To add one: write ``triune/methods/NAME.py`` with one ``@merge_method`` function, and add its line here.
"""

from __future__ import annotations

import importlib

from triune.errors import RecipeError, did_you_mean
from triune.methods._spec import Method

METHODS = {
    "linear": "triune.methods.linear:linear",
    "rewarded_soup": "triune.methods.rewarded_soup:rewarded_soup",
    "model_stock": "triune.methods.model_stock:model_stock",
    "task_arithmetic": "triune.methods.task_arithmetic:task_arithmetic",
    "ties": "triune.methods.ties:ties",
    "dare_linear": "triune.methods.dare_linear:dare_linear",
    "dare_ties": "triune.methods.dare_ties:dare_ties",
    "della_linear": "triune.methods.della_linear:della_linear",
    "della": "triune.methods.della:della",
    "breadcrumbs": "triune.methods.breadcrumbs:breadcrumbs",
    "breadcrumbs_ties": "triune.methods.breadcrumbs_ties:breadcrumbs_ties",
    "tsvm": "triune.methods.tsvm:tsvm",
    "r_tsvm": "triune.methods.r_tsvm:r_tsvm",
}

ALIASES = {"weight_average": "linear", "resm": "r_tsvm"}


def find(name: str) -> Method:
    """The method of that name or alias; torch is not imported.

    >>> find("ties").title
    'TIES'
    >>> find("dare-ties")
    Traceback (most recent call last):
    ...
    triune.errors.RecipeError: There is no merge method 'dare-ties'. Did you mean dare_ties? `triune methods` lists them.
    """
    target = METHODS.get(ALIASES.get(name, name))
    if target is None:
        hint = did_you_mean(name, [*METHODS, *ALIASES])
        raise RecipeError(f"There is no merge method {name!r}.{hint} `triune methods` lists them.")
    module, attribute = target.split(":")
    method = getattr(importlib.import_module(module), attribute)
    assert isinstance(method, Method), f"{target} is not a merge method"
    return method


__all__ = ["ALIASES", "METHODS", "Method", "find"]
