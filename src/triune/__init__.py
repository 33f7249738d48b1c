"""Merge helpful, honest and harmless specialists into one balanced language model.

The menu; nothing is imported before it is used, so ``import triune`` is fast and leaves torch alone.

Example:
    >>> import triune
    >>> recipe = triune.recipe_from_flags(base="demo:base", experts=["helpful=demo:helpful", "honest=demo:honest"])
    >>> recipe.method
    'r_tsvm'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triune.align.train import Trained, train
    from triune.data.load import load_pairs
    from triune.diagnostics.diagnose import diagnose
    from triune.diagnostics.records import Diagnosis, read_diagnosis
    from triune.engine.merge import MergeResult, merge
    from triune.engine.plan import Plan
    from triune.engine.plan import make_plan as plan
    from triune.engine.verify import Verification, verify
    from triune.evals.bench import Benched, bench
    from triune.evals.result import Result
    from triune.evals.run import evaluate
    from triune.evals.suite import Suite
    from triune.methods import find as find_method
    from triune.methods.tensors import merge_tensors
    from triune.mixtures.mixture import Mixture, mix
    from triune.recipes import Recipe, load_recipe, parse_recipe, recipe_from_flags
    from triune.reports.report import report

__version__ = "0.1.0"

_MENU = {
    "Benched": "triune.evals.bench:Benched",
    "Diagnosis": "triune.diagnostics.records:Diagnosis",
    "MergeResult": "triune.engine.merge:MergeResult",
    "Mixture": "triune.mixtures.mixture:Mixture",
    "Plan": "triune.engine.plan:Plan",
    "Recipe": "triune.recipes:Recipe",
    "Result": "triune.evals.result:Result",
    "Suite": "triune.evals.suite:Suite",
    "Trained": "triune.align.train:Trained",
    "Verification": "triune.engine.verify:Verification",
    "bench": "triune.evals.bench:bench",
    "diagnose": "triune.diagnostics.diagnose:diagnose",
    "evaluate": "triune.evals.run:evaluate",
    "find_method": "triune.methods:find",
    "load_pairs": "triune.data.load:load_pairs",
    "load_recipe": "triune.recipes:load_recipe",
    "merge": "triune.engine.merge:merge",
    "merge_tensors": "triune.methods.tensors:merge_tensors",
    "mix": "triune.mixtures.mixture:mix",
    "parse_recipe": "triune.recipes:parse_recipe",
    "plan": "triune.engine.plan:make_plan",
    "read_diagnosis": "triune.diagnostics.records:read_diagnosis",
    "recipe_from_flags": "triune.recipes:recipe_from_flags",
    "report": "triune.reports.report:report",
    "train": "triune.align.train:train",
    "verify": "triune.engine.verify:verify",
}

__all__ = [
    "Benched",
    "Diagnosis",
    "MergeResult",
    "Mixture",
    "Plan",
    "Recipe",
    "Result",
    "Suite",
    "Trained",
    "Verification",
    "__version__",
    "bench",
    "diagnose",
    "evaluate",
    "find_method",
    "load_pairs",
    "load_recipe",
    "merge",
    "merge_tensors",
    "mix",
    "parse_recipe",
    "plan",
    "read_diagnosis",
    "recipe_from_flags",
    "report",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MENU:
        raise AttributeError(f"module 'triune' has no attribute {name!r}")
    module, attribute = _MENU[name].split(":")
    return getattr(importlib.import_module(module), attribute)
