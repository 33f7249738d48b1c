"""The three ways in: a file, a text, a command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triune.errors import ParameterError, RecipeError, did_you_mean
from triune.recipes.build import as_mapping, build, canonical, find, knows
from triune.recipes.schema import LABEL, TOP_LEVEL, Recipe
from triune.recipes.yaml import Document, Keys, read_yaml, write_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from triune.methods import Method

_TEXT = ("merge_method", "base_model", "tokenizer_source", "chat_template")
_WHOLE = ("models", "parameters", "tokenizer")


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe. ``settings`` are ``key=value`` texts that override it, see :func:`recipe_from_flags`."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe at {path}. Check the path.") from None
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe at {path}: {error.strerror}. Name a YAML file.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path.name}: byte {error.start} is not UTF-8. Save the recipe as UTF-8 text.") from None
    doc = read_yaml(text, path.name)
    if settings:
        doc = _override(doc, settings)
        text = write_yaml(doc.tree, " ".join([path.name, *(f"--set {s!r}" for s in settings)]))
    return build(doc, text, path.parent)


def parse_recipe(text: str, *, origin: str = "recipe", folder: Path | None = None) -> Recipe:
    """Read a recipe from text.

    >>> parse_recipe("{merge_method: linear, models: [{model: a}], parameters: {weigth: 1}}", origin="recipe.yml")
    Traceback (most recent call last):
    ...
    triune.errors.RecipeError: recipe.yml:1: unknown key 'weigth' under parameters. Did you mean weight?
    """
    return build(read_yaml(text, origin), text, folder)


def recipe_from_flags(
    *, base: str | None, experts: Sequence[str], method: str = "r_tsvm", settings: Sequence[str] = ()
) -> Recipe:
    """The recipe that a command line asks for.

    Args:
        base: the model that the experts were fine-tuned from.
        experts: each ``reference`` or ``label=reference``.
        method: a merge method's name.
        settings: each ``key=value``: a top-level key (``seed=3``), a parameter for all experts (``density=0.2``, a list
            is a gradient along the layers), or for one (``weight.helpful=0.5``). Where the method needs weights and
            none are set, each is 1, or 1/experts for averages.
    """
    tree: dict[str, Any] = {"models": [_expert(text) for text in experts], "merge_method": method}
    if base is not None:
        tree["base_model"] = base
    doc = _override(Document(tree, "command line"), settings)
    spec = find(doc, tree["merge_method"])
    needs_weight = any(p.name == "weight" and p.required for p in spec.parameters)
    if needs_weight and any("weight" not in entry.get("parameters", {}) for entry in tree["models"]):
        weight = 1.0 if spec.takes == "deltas" else 1 / len(experts)
        tree.setdefault("parameters", {}).setdefault("weight", weight)
    return build(doc, write_yaml(tree), None)


def _expert(text: str) -> dict[str, Any]:
    label, equals, reference = text.partition("=")
    # A folder's name may hold "=": what exists is not split.
    if equals and re.match(LABEL, label) and not any(Path(p).exists() for p in (text, text.partition("+")[0])):
        return {"model": reference, "name": label}
    return {"model": text}


def _override(doc: Document, settings: Sequence[str]) -> Document:
    """Write ``key=value`` texts into the tree, as if the file had said so."""
    tree, flags, later = as_mapping(doc), dict(doc.flags), []
    doc = Document(tree, doc.origin, doc.lines, flags)
    for setting in settings:
        key, _, text = setting.partition("=")
        flag = f"--set {setting}"
        value = text if key in _TEXT else read_yaml(text, f"--set {key}").tree
        if not key or value in (None, ""):
            raise RecipeError(f"{flag}: write key=value, as in --set density=0.2.")
        if key in TOP_LEVEL and key not in _WHOLE:
            tree[key], flags[key,] = value, flag
        else:
            later.append((key, value, flag))
    for key, value, flag in later:  # they need the method, which another setting may name
        _set_parameter(doc, flags, find(doc, tree.get("merge_method")), key, value, flag)
    return doc


def _set_parameter(doc: Document, flags: dict[Keys, str], method: Method, key: str, value: Any, flag: str) -> None:
    """For one expert, or for all: then no expert keeps its own value, which would come first."""
    name, dot, label = key.partition(".")
    try:
        name = method.parameter(name).name
    except ParameterError:
        hint = did_you_mean(name, [*(p.name for p in method.parameters), *TOP_LEVEL]) or knows(method)
        raise RecipeError(f"{flag}: {method.name} has no parameter {name!r}.{hint}") from None
    models = doc.tree.get("models")
    entries = [(i, m) for i, m in enumerate(models if isinstance(models, list) else ()) if isinstance(m, dict)]
    holders: list[tuple[Keys, Any]] = [
        (("models", i), m) for i, m in entries if not dot or label in (m.get("name"), m.get("model"))
    ]
    if dot and not holders:
        labels = [str(m.get("name") or m.get("model")) for _, m in entries]
        hint = did_you_mean(label, labels)
        raise RecipeError(f"{flag}: no expert is called {label!r}; there are {', '.join(labels)}.{hint}")
    for at, holder in holders if dot else [*holders, ((), doc.tree)]:
        given = holder.get("parameters") or {}
        if not isinstance(given, dict):
            continue  # refused, with its line, when the recipe is built
        kept = {k: v for k, v in given.items() if canonical(method, k) != name}
        if dot or not at:
            kept[name] = value
            flags[*at, "parameters", name] = flag
        if kept or given:
            holder["parameters"] = kept
